"""Weights out of the tool and published checkpoints into it."""
