"""What a fine-tune cost, whether that is real, and what would have prevented it."""
