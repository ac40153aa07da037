"""Agreement in number: of verbs, across distractors, of reflexives, and of nouns with their determiner."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out
from forgetting.micro.world import ACTIONS, ADJECTIVES, DEEDS, NOUNS, PREPOSITIONS

KINDS = ("simple", "prepositional", "relative", "reflexive", "determiner")
REFLEXIVES = ("itself", "themselves")


class Grammar(Skill):
    """Five phenomena; the distractor noun of a held-out item always has the other number."""

    name: ClassVar[str] = "grammar"

    def draw(self, rng: random.Random) -> Draw:
        """Return a sentence up to the word that must agree, and that word in both numbers."""
        kind = rng.choice(KINDS)
        number, other = rng.randrange(2), rng.randrange(2)
        subject, attractor = rng.sample(NOUNS, 2)
        adjective = rng.choice(ADJECTIVES)
        forms = rng.choice(ACTIONS)
        if kind == "simple":
            context = f"the {adjective} {subject[number]}"
        elif kind == "relative":
            context = f"the {subject[number]} that {rng.choice(DEEDS)[number]} the {attractor[other]}"
        elif kind == "determiner":
            determiner = ("this", "those")[number]
            context = f"the {attractor[other]} {rng.choice(DEEDS)[other]} {determiner} {adjective}"
            forms = subject
        else:
            context = f"the {subject[number]} {rng.choice(PREPOSITIONS)} the {attractor[other]}"
            if kind == "reflexive":
                context, forms = f"{context} hurt", REFLEXIVES
        answer = forms[number]
        hold = held_out(f"{context} {answer}") and (kind == "simple" or other != number)
        return Draw(kind, context, answer, (forms[1 - number],), hold)
