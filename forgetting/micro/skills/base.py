"""What the eight skills share: a draw, pretraining lines, and probe items that pretraining never states."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from forgetting.micro.world import World, bucket


@dataclass(frozen=True, slots=True)
class Draw:
    """One thing that a skill can say.

    Attributes:
        kind: The phenomenon, for reports by kind.
        context: Text up to the answer, without a space at its end.
        answer: What follows, after one space.
        distractors: Wrong answers of the same form.
        held_out: Whether pretraining text must never say it.
    """

    kind: str
    context: str
    answer: str
    distractors: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """A multiple-choice item: ``choices[gold]`` is right."""

    kind: str
    context: str
    choices: tuple[str, ...]
    gold: int

    @property
    def text(self) -> str:
        """The context and the right answer, as they would stand in a text."""
        return f"{self.context} {self.choices[self.gold]}"


class Skill(ABC):
    """A generator of draws; each draw is either pretraining text or a probe item, never both.

    Which of the two is decided by a hash of the draw's content (the operands, the sentence, ...), so it is
    the same for every seed of the corpus.
    """

    name: ClassVar[str]
    choices: ClassVar[int] = 2
    lines: ClassVar[tuple[int, int]] = (2, 4)
    """Fewest and most lines of a document."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def chance(self) -> float:
        """The accuracy of guessing on the probe."""
        return 1 / self.choices

    @abstractmethod
    def draw(self, rng: random.Random) -> Draw:
        """Return one draw, held out or not."""

    def line(self, rng: random.Random) -> str:
        """Return one line of pretraining text."""
        while True:
            draw = self.draw(rng)
            if not draw.held_out:
                return f"{draw.context} {draw.answer}"

    def document(self, rng: random.Random) -> str:
        """Return one document of pretraining text: a few lines of this skill."""
        return "\n".join(self.line(rng) for _ in range(rng.randint(*self.lines)))

    def probe(self, count: int, rng: random.Random) -> list[ProbeItem]:
        """Return ``count`` different held-out items; the right answer is equally often in every position."""
        drawn: dict[tuple[str, str], Draw] = {}
        for _ in range(1000 * count):
            draw = self.draw(rng)
            if draw.held_out:
                drawn.setdefault((draw.context, draw.answer), draw)
            if len(drawn) == count:
                break
        else:
            raise ValueError(f"{self.name}: only {len(drawn)} held-out items exist, {count} were asked for")
        items = []
        for index, draw in enumerate(drawn.values()):
            gold = index % self.choices
            options = list(draw.distractors)
            options.insert(gold, draw.answer)
            items.append(ProbeItem(draw.kind, draw.context, tuple(options), gold))
        rng.shuffle(items)
        return items


def held_out(content: str, share: int = 8) -> bool:
    """Return whether a draw's content is one of the 1 in ``share`` that only probes may say."""
    return bucket(content, share) == 0


def comparable(first: str, second: str) -> bool:
    """Return whether neither text begins with the other, in whole words and single digits.

    A beginning is never less probable than the whole, so no model could prefer the longer choice of the two.
    """
    shared = list(zip(_units(first), _units(second), strict=False))
    return any(a != b for a, b in shared)


def _units(text: str) -> list[str]:
    return [unit for word in text.split() for unit in (word if word.isdigit() else [word])]
