"""Maths: tensors in, tensors out; no disk, no print, no config."""
