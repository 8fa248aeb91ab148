"""What a run executes on: devices, precision, execution defaults, signals, processes."""
