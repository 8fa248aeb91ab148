"""Families of transformations."""
