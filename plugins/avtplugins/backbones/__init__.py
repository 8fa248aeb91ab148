"""Networks to pretrain."""
