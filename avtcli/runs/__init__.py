"""Deeds: one file per command, and what they share; nothing here prints."""
