"""``make torture``: faults caused on purpose, and how many of them a study survives."""
