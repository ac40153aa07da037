"""Sentiment and topic of short reviews."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out

TOPICS: dict[str, tuple[str, ...]] = {
    "food": ("soup", "bread", "salad", "cake"),
    "film": ("plot", "scene", "hero", "script"),
    "hotel": ("room", "bed", "pool", "lobby"),
    "music": ("song", "band", "chorus", "drum"),
}
PRAISE: tuple[str, ...] = ("lovely", "great", "superb", "charming", "perfect", "pleasant")
BLAME: tuple[str, ...] = ("awful", "bad", "dull", "horrid", "poor", "nasty")
LABELS: tuple[str, str] = ("negative", "positive")


def review(topic: str, positive: bool, rng: random.Random) -> str:
    """Return a review of two statements; a negated word of the other sentiment counts for this one."""
    statements = []
    for thing in rng.sample(TOPICS[topic], 2):
        negated = rng.random() < 0.15
        word = rng.choice(PRAISE if positive != negated else BLAME)
        statements.append(f"the {thing} was {'not ' if negated else ''}{word}")
    return " and ".join(statements)


class Sentiment(Skill):
    """Half of the items ask for the sentiment, half for the topic."""

    name: ClassVar[str] = "sentiment"

    def draw(self, rng: random.Random) -> Draw:
        """Return a review, its sentiment or topic, and another label."""
        kind = rng.choice(("feeling", "topic"))
        topic, positive = rng.choice(tuple(TOPICS)), rng.random() < 0.5
        text = review(topic, positive, rng)
        answer, options = (LABELS[positive], LABELS) if kind == "feeling" else (topic, tuple(TOPICS))
        wrong = rng.choice([option for option in options if option != answer])
        return Draw(kind, f"review : {text} . {kind} :", answer, (wrong,), held_out(text))
