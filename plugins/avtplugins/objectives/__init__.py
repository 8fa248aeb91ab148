"""What pretraining minimises: one objective, one file, one paper."""
