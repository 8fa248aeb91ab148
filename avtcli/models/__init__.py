"""The stochastic encoder, the Siamese model, and loading and initialising their weights."""
