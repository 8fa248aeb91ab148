"""Settings of every command: recipe and command line become one frozen, fully resolved model."""
