"""From data sets to batches on the device: datasets, cropping, streaming, the table of an epoch."""
