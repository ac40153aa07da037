"""The eight skills of the embedded world, one module each."""

from __future__ import annotations

from forgetting.micro.skills.arithmetic import Arithmetic
from forgetting.micro.skills.base import Draw, ProbeItem, Skill
from forgetting.micro.skills.copying import Copying
from forgetting.micro.skills.facts import Facts
from forgetting.micro.skills.grammar import Grammar
from forgetting.micro.skills.instructions import Instructions
from forgetting.micro.skills.patterns import Patterns
from forgetting.micro.skills.sentiment import Sentiment
from forgetting.micro.skills.translation import Translation

SKILLS: dict[str, type[Skill]] = {
    skill.name: skill for skill in (Grammar, Facts, Arithmetic, Copying, Patterns, Translation, Sentiment, Instructions)
}

__all__ = ["SKILLS", "Draw", "ProbeItem", "Skill"]
