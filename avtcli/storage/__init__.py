"""Files on disk: atomic writes, homography banks, checkpoints, run folders, the metrics log."""
