"""Small sums and differences, in signs and in words."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, comparable, held_out

LARGEST = 20
OPERATIONS = {"sum": ("{} + {} =", "{} plus {} is"), "difference": ("{} - {} =", "{} minus {} is")}
NEAR_MISSES = (-10, -2, -1, 1, 2, 10)


class Arithmetic(Skill):
    """Operands up to 20; a held-out pair of operands is held out in every wording."""

    name: ClassVar[str] = "arithmetic"
    lines: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: random.Random) -> Draw:
        """Return a calculation, its result, and a near miss."""
        kind, first, second, result, hold = calculation(rng)
        return Draw(
            kind=kind,
            context=rng.choice(OPERATIONS[kind]).format(first, second),
            answer=str(result),
            distractors=(str(rng.choice(near_misses(result))),),
            held_out=hold,
        )


def calculation(rng: random.Random) -> tuple[str, int, int, int, bool]:
    """Return an operation, its two operands, the result, and whether only probes may state it."""
    kind = rng.choice(tuple(OPERATIONS))
    first, second = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    if kind == "difference" and first < second:
        first, second = second, first
    result = first + second if kind == "sum" else first - second
    return kind, first, second, result, held_out(f"{kind} {first} {second}", 6)


def near_misses(result: int) -> list[int]:
    """Return plausible wrong results: off by 1, 2 or 10, never negative."""
    wrong = [result + step for step in NEAR_MISSES if result + step >= 0]
    return [number for number in wrong if comparable(str(number), str(result))]
