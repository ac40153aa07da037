"""Translation of short sentences into the invented language."""

from __future__ import annotations

import random
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, held_out
from forgetting.micro.world import ADJECTIVES, DEEDS, NOUNS, Language


def translation_draw(language: Language, rng: random.Random, template: str = "in {} : {} =") -> Draw:
    """Return a sentence and its translation; the wrong one has one wrong word, or English word order.

    Args:
        language: The language to translate into.
        rng: The generator to draw from.
        template: The context, with places for the language's name and the English sentence.
    """
    subject, object_ = (noun for noun, _ in rng.sample(NOUNS[:12], 2))
    verb = rng.choice(DEEDS)[0]
    adjectives = [rng.choice(ADJECTIVES[:8]) if rng.random() < 0.4 else None for _ in range(2)]
    first, second = (language.phrase(a, n) for a, n in zip(adjectives, (subject, object_), strict=True))
    answer = language.sentence(first, verb, second)
    if rng.random() < 0.5:
        kind, wrong = "order", language.sentence(first, verb, second, order="SVO")
    else:
        kind = "word"
        words = answer.split()
        place = words.index(language.words[rng.choice((subject, object_))])
        other = rng.choice([n for n, _ in NOUNS[:12] if n not in (subject, object_)])
        words[place] = language.words[other]
        wrong = " ".join(words)
    english = " ".join(
        word for word in ("the", adjectives[0], subject, verb, "the", adjectives[1], object_) if word is not None
    )
    context = template.format(language.name, english)
    return Draw(kind, context, answer, (wrong,), held_out(english))


class Translation(Skill):
    """Sentences whose every word is known, in combinations never seen."""

    name: ClassVar[str] = "translation"
    lines: ClassVar[tuple[int, int]] = (2, 3)

    def draw(self, rng: random.Random) -> Draw:
        """Return a sentence in English and in the invented language."""
        return translation_draw(self.world.language, rng)
