"""Pretraining: THE loop, its setup, step, optimiser, schedule, monitor and collapse check."""
