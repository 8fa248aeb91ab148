"""What is evaluated: weights with prepared images, features of their layers, and the feature cache."""
