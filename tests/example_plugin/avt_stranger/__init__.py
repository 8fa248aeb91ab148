"""Plugins for avt, from outside of it."""
