"""The embedded world: a seeded generator of text, and a small model pretrained on it."""

from __future__ import annotations

from pathlib import Path


def model_directory() -> Path:
    """Return the folder of the shipped model and tokenizer, for ``from_pretrained``."""
    return Path(__file__).resolve().parent / "model"
