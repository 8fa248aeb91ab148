"""Homographies, warps, and random families of them: tensors in, tensors out."""
