"""Pretraining text: an endless, seeded mixture of the eight skills, in three disjoint splits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal, get_args

from forgetting.errors import UsageError, did_you_mean
from forgetting.micro.skills import SKILLS, Skill
from forgetting.micro.world import WORLD_SEED, bucket, build_world

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[str, ...] = get_args(Split)

MIXTURE: dict[str, float] = {
    "grammar": 0.7,
    "facts": 1.6,
    "arithmetic": 2.0,
    "copying": 0.8,
    "patterns": 1.9,
    "translation": 0.9,
    "sentiment": 2.2,
    "instructions": 0.6,
}
"""Relative number of documents per skill: what is learned the slowest has the most."""

_BUCKETS = 20


def split_of(document: str) -> str:
    """Return the one split that may contain a document: a document's text decides, whatever the seed."""
    return {0: "held_out", 1: "validation"}.get(bucket(document, _BUCKETS), "train")


def stream(seed: int, split: Split = "train", world_seed: int = WORLD_SEED) -> Iterator[str]:
    """Yield documents without end.

    Args:
        seed: Which stream; the same seed gives the same documents.
        split: ``train`` (what the model was pretrained on and replay draws from), ``validation`` (early
            stopping) or ``held_out`` (change in cross-entropy). No document occurs in two splits.
        world_seed: Which world the text speaks of.

    Raises:
        UsageError: if the split is unknown or a seed negative.
    """
    if split not in SPLITS:
        raise UsageError(f"split: {split!r} is not a split{did_you_mean(split, SPLITS)}")
    if seed < 0:
        raise UsageError(f"seed: {seed} is negative; give a whole number from 0 on")
    world = build_world(world_seed)
    return _stream([SKILLS[name](world) for name in MIXTURE], random.Random(f"corpus-{split}-{seed}"), split)


def _stream(skills: list[Skill], rng: random.Random, split: str) -> Iterator[str]:
    weights = list(MIXTURE.values())
    while True:
        (skill,) = rng.choices(skills, weights)
        document = skill.document(rng)
        if split_of(document) == split:
            yield document


def pretraining_documents(count: int, seed: int, split: Split = "train") -> list[str]:
    """Return the first ``count`` documents of a stream of the shipped world (see ``stream``)."""
    if count < 1:
        raise UsageError(f"count: {count} is not positive; give the number of documents wanted")
    return list(islice(stream(seed, split), count))
