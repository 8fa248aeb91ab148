"""Everything on disk: files, homography banks, checkpoints, run folders, the metrics log."""
