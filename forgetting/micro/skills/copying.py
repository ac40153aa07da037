"""Copying and reversing short sequences of letters or words."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out
from forgetting.micro.world import LETTERS, TOKENS


class Copying(Skill):
    """The wrong answer has the same elements in another order."""

    name: ClassVar[str] = "copying"

    def draw(self, rng: random.Random) -> Draw:
        """Return a sequence with an instruction, what it asks for, and another order."""
        kind = rng.choice(("copy", "reverse"))
        elements = rng.sample(rng.choice((LETTERS, TOKENS)), rng.randint(3, 4))
        result = elements if kind == "copy" else elements[::-1]
        wrong = list(result)
        while wrong == result:
            rng.shuffle(wrong)
        return Draw(
            kind=kind,
            context=f"{kind} : {' '.join(elements)} :",
            answer=" ".join(result),
            distractors=(" ".join(wrong),),
            held_out=held_out(f"{kind} {' '.join(elements)}"),
        )
