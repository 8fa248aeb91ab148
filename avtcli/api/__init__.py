"""The commands as functions, and the loading of weights: what `avtcli` offers to Python."""
