"""The features of every image in one file."""
