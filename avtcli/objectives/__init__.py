"""Objectives by name, and sums of them."""
