"""What the bench measures, and how it is timed."""
