"""What is concluded from results: statistics, fronts, laws of forgetting."""
