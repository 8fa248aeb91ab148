"""The features of every image of a data set, written to one file."""
