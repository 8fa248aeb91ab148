"""What writes embeddings: rows as they are computed, and each kind of file."""
