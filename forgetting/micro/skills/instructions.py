"""Following an instruction about the format of the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

from forgetting.micro.skills.base import Draw, Skill, comparable, held_out
from forgetting.micro.world import ADJECTIVES, TOKENS

FORMATS: dict[str, Callable[[str], str]] = {
    "in capital letters": str.upper,
    "with quotes": lambda text: f'" {text} "',
    "in brackets": lambda text: f"( {text} )",
    "twice": lambda text: f"{text} {text}",
    "first word only": lambda text: text.split()[0],
    "last word only": lambda text: text.split()[-1],
}


class Instructions(Skill):
    """The wrong answer is the same content in the format of another instruction."""

    name: ClassVar[str] = "instructions"

    def draw(self, rng: random.Random) -> Draw:
        """Return an instruction with its content, and the answer in the right and in another format."""
        kind = rng.choice(tuple(FORMATS))
        content = f"{rng.choice(ADJECTIVES)} {rng.choice(TOKENS)}"
        answers = {name: write(content) for name, write in FORMATS.items()}
        wrong = [text for text in answers.values() if comparable(text, answers[kind])]
        return Draw(
            kind=kind,
            context=f"answer {kind} : {content} .",
            answer=answers[kind],
            distractors=(rng.choice(wrong),),
            held_out=held_out(f"{kind} {content}", 3),
        )
