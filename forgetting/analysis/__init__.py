"""What is concluded from results: statistics."""
