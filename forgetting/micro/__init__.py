"""The embedded world: a seeded generator of text, and a small model pretrained on it."""
