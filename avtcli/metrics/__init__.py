"""Figures of merit: tensors in, numbers out."""
