"""Equivariance of a representation: by its decoder and by ridge regression on frozen features."""
