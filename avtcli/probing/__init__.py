"""Classifiers on features: setup, head training, closed-form heads, fine-tuning."""
