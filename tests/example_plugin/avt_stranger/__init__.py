"""Plugins for avt in another distribution."""
