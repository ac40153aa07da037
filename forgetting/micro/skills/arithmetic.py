"""Small sums and differences, in signs and in words."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out

LARGEST = 20
OPERATIONS = {"sum": ("{} + {} =", "{} plus {} is"), "difference": ("{} - {} =", "{} minus {} is")}
NEAR_MISSES = (-10, -2, -1, 1, 2, 10)


class Arithmetic(Skill):
    """Operands up to 20; a held-out pair of operands is held out in every wording."""

    name: ClassVar[str] = "arithmetic"
    lines: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: random.Random) -> Draw:
        """Return a calculation, its result, and a near miss."""
        kind = rng.choice(tuple(OPERATIONS))
        first, second = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
        if kind == "difference" and first < second:
            first, second = second, first
        result = first + second if kind == "sum" else first - second
        wrong = rng.choice([result + step for step in NEAR_MISSES if result + step >= 0])
        return Draw(
            kind=kind,
            context=rng.choice(OPERATIONS[kind]).format(first, second),
            answer=str(result),
            distractors=(str(wrong),),
            held_out=held_out(f"{kind} {first} {second}", 6),
        )
