"""Completing a pattern that the context sets up: a cycle, or a mapping given by examples."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out
from forgetting.micro.world import LETTERS, TOKENS

CYCLES = ("AB", "AAB", "ABB", "ABC", "AABB")


class Patterns(Skill):
    """The wrong answer is another element of the same context."""

    name: ClassVar[str] = "patterns"

    def draw(self, rng: random.Random) -> Draw:
        """Return a pattern cut before an element that it determines."""
        kind = rng.choice(("cycle", "mapping"))
        return self._cycle(rng) if kind == "cycle" else self._mapping(rng)

    @staticmethod
    def _cycle(rng: random.Random) -> Draw:
        cycle = rng.choice(CYCLES)
        names = dict(zip("ABC", rng.sample(rng.choice((LETTERS, TOKENS)), 3), strict=True))
        elements = [names[symbol] for symbol in cycle]
        length = rng.randint(2 * len(elements), 3 * len(elements))
        answer = elements[length % len(elements)]
        wrong = rng.choice(sorted(set(elements) - {answer}))
        context = " ".join(elements[i % len(elements)] for i in range(length))
        # Held out by its elements, whatever its length: a longer pattern contains every shorter one.
        hold = held_out(f"cycle {' '.join(elements)}")
        return Draw("cycle", f"pattern : {context}", answer, (wrong,), hold)

    @staticmethod
    def _mapping(rng: random.Random) -> Draw:
        keys, values = rng.sample(LETTERS, 3), rng.sample(TOKENS, 3)
        given = [f"{key} {value}" for key, value in zip(keys, values, strict=True)]
        # Earlier questions with their answers: a line then teaches more than once what a mapping is.
        answered = rng.choices(given, k=rng.randint(0, 3))
        asked = rng.randrange(3)
        wrong = rng.choice([value for i, value in enumerate(values) if i != asked])
        context = " , ".join([*given, *answered, keys[asked]])
        return Draw("mapping", f"map : {context}", values[asked], (wrong,), held_out(" , ".join(given)))
