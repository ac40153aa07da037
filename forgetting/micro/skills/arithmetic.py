"""Small sums and differences, in signs and in words."""

from __future__ import annotations

import random
from typing import ClassVar, NamedTuple

from forgetting.micro.skills.base import Draw, Skill, comparable
from forgetting.micro.world import bucket

LARGEST = 20
OPERATIONS = {"sum": ("{} + {} =", "{} plus {} is"), "difference": ("{} - {} =", "{} minus {} is")}
NEAR_MISSES = (-4, -3, -2, 2, 3, 4)


class Calculation(NamedTuple):
    """Two operands up to 20, and which of the two wordings of the operation states it."""

    kind: str
    first: int
    second: int
    wording: int

    @property
    def result(self) -> int:
        """The right result."""
        return self.first + self.second if self.kind == "sum" else self.first - self.second

    @property
    def held_out(self) -> bool:
        """Whether only probes may state it in this wording; no calculation is held out in both."""
        return bucket(f"{self.kind} {self.first} {self.second}", 5) == self.wording

    def stated(self, wordings: dict[str, tuple[str, str]] = OPERATIONS) -> str:
        """Return the question, up to the result."""
        return wordings[self.kind][self.wording].format(self.first, self.second)


class Arithmetic(Skill):
    """Tables known in one wording are probed in the other, as facts are: learning them is steady, not sudden."""

    name: ClassVar[str] = "arithmetic"
    lines: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: random.Random) -> Draw:
        """Return a calculation, its result, and a near miss."""
        asked = calculation(rng)
        return Draw(
            kind=asked.kind,
            context=asked.stated(),
            answer=str(asked.result),
            distractors=(str(rng.choice(near_misses(asked.result))),),
            held_out=asked.held_out,
        )


def calculation(rng: random.Random) -> Calculation:
    """Return a random calculation, held out or not."""
    kind = rng.choice(tuple(OPERATIONS))
    first, second = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    if kind == "difference" and first < second:
        first, second = second, first
    return Calculation(kind, first, second, rng.randrange(2))


def near_misses(result: int) -> list[int]:
    """Return plausible wrong results: off by 2 to 4, never negative."""
    wrong = [result + step for step in NEAR_MISSES if result + step >= 0]
    return [number for number in wrong if comparable(str(number), str(result))]
