"""Benchmarks, and the independent baseline that they and the tests compare with."""
