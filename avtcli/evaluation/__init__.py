"""How equivariant a representation is: by its decoder and by ridge regression on frozen features."""
