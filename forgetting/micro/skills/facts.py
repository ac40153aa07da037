"""Facts about people: a city, a job and a pet each, in four phrasings."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill
from forgetting.micro.world import ATTRIBUTES, bucket

PHRASINGS: dict[str, tuple[str, ...]] = {
    "city": ("{} lives in", "the home of {} is in", "where does {} live ? in", "{} has a house in"),
    "job": ("{} works as a", "the job of {} is", "what does {} do ? {} is a", "{} earns money as a"),
    "pet": ("{} owns a", "the pet of {} is a", "which pet does {} have ? a", "{} always feeds a"),
}
"""Every phrasing ends where the value follows."""


def unseen_phrasing(person: str, attribute: str) -> int:
    """Return the phrasing in which pretraining never states this fact (it states it in all others)."""
    return bucket(f"{person} {attribute}", len(PHRASINGS[attribute]))


class Facts(Skill):
    """A probe item asks for a known fact in the one phrasing that was only ever seen with other people."""

    name: ClassVar[str] = "facts"
    choices: ClassVar[int] = 4
    lines: ClassVar[tuple[int, int]] = (3, 5)

    def draw(self, rng: random.Random) -> Draw:
        """Return a fact, its value, and three other values of the same attribute."""
        person = rng.choice(self.world.people)
        attribute = rng.choice(ATTRIBUTES)
        value = self.world.facts[person][attribute]
        others = [v for v in self.world.values(attribute) if v != value]
        phrasing = rng.randrange(len(PHRASINGS[attribute]))
        return Draw(
            kind=attribute,
            context=PHRASINGS[attribute][phrasing].replace("{}", person),
            answer=value,
            distractors=tuple(rng.sample(others, self.choices - 1)),
            held_out=phrasing == unseen_phrasing(person, attribute),
        )
