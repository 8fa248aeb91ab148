"""What plugins state about themselves, and whether the installation and the machine are in order."""
