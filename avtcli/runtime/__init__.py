"""The execution environment of a run: devices, precision, execution settings, signals, processes."""
