"""Formats of exported encoders."""
