"""Task formats and sequences."""
