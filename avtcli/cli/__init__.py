"""The command line: options, printed results and exit codes; commands import torch when they run."""
