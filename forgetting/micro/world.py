"""The embedded world: its words, its people and their facts, and its invented languages.

Everything follows from the world seed through ``random.Random``; nothing reads or moves the global generator.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

from forgetting.errors import UsageError

WORLD_SEED = 0
"""The world of the shipped model, probes and sequences."""

PEOPLE = 120
NEWCOMERS = 72


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _with_s(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((word, word + "s") for word in text.split())


def _verbs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((word + "s", word) for word in text.split())


NOUNS = _with_s("dog cat bird horse boy girl king queen farmer baker sailor singer teacher lawyer hunter guard")
"""Singular and plural."""
NEW_NOUNS = _with_s("robot wizard dragon clown giant pirate knight puppet")
"""Nouns that never occur in pretraining text: for downstream tasks."""
ADJECTIVES = _words("red old small big happy green quick tall brave young")
ACTIONS = _verbs("run sleep sing smile wait laugh jump swim work walk")
"""Intransitive verbs: third person singular and plural."""
DEEDS = _verbs("see like help know find call")
"""Transitive verbs: third person singular and plural."""
PREPOSITIONS = _words("near behind with beside")
LETTERS = tuple("bcdfghjkmnpqrtvwxz")
TOKENS = _words("sun moon star tree rock lake wind fire snow leaf sand rain")
"""Plain words that are copied, reversed and mapped."""
JOBS = _words("pilot nurse chef judge miner barber tailor clerk potter brewer")
PETS = _words("rabbit turtle parrot goat hamster lizard pony goose otter ferret")
ATTRIBUTES = ("city", "job", "pet")


@dataclass(frozen=True, slots=True)
class Language:
    """An invented language: a word for each noun, adjective and transitive verb, and an order of its own.

    Attributes:
        name: What the language is called in the text.
        words: English word (singular, third person) to invented word.
        order: A permutation of ``"SVO"``.
        adjective_first: Whether an adjective precedes its noun.
    """

    name: str
    words: dict[str, str]
    order: str
    adjective_first: bool

    def phrase(self, adjective: str | None, noun: str) -> list[str]:
        """Return the words of a noun phrase; the language has no articles."""
        words = [self.words[noun]]
        if adjective is not None:
            words.insert(0 if self.adjective_first else 1, self.words[adjective])
        return words

    def sentence(self, subject: list[str], verb: str, object_: list[str], order: str | None = None) -> str:
        """Return subject, verb (English) and object in the language's order, or in the order asked for."""
        parts = {"S": subject, "V": [self.words[verb]], "O": object_}
        return " ".join(word for part in order or self.order for word in parts[part])


@dataclass(frozen=True)
class World:
    """What there is to know.

    Attributes:
        seed: The seed that everything follows from.
        cities: Invented city names.
        facts: Person to attribute to value; every value is equally frequent.
        newcomers: Names that never occur in pretraining text.
        language: The language that pretraining text translates into.
        second_language: Another one, for a downstream task.
    """

    seed: int
    cities: tuple[str, ...]
    facts: dict[str, dict[str, str]]
    newcomers: tuple[str, ...]
    language: Language
    second_language: Language

    @property
    def people(self) -> tuple[str, ...]:
        """The names of those whom pretraining text speaks of."""
        return tuple(self.facts)

    def values(self, attribute: str) -> tuple[str, ...]:
        """Return all values of one of ``ATTRIBUTES``."""
        return {"city": self.cities, "job": JOBS, "pet": PETS}[attribute]


def bucket(text: str, buckets: int) -> int:
    """Return the hash bucket of a text: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def assign_facts(
    names: tuple[str, ...], values: dict[str, tuple[str, ...]], rng: random.Random
) -> dict[str, dict[str, str]]:
    """Give every name a value of every attribute, each value equally often (to within one)."""
    facts: dict[str, dict[str, str]] = {name: {} for name in names}
    for attribute, options in values.items():
        drawn = [options[i % len(options)] for i in range(len(names))]
        rng.shuffle(drawn)
        for name, value in zip(names, drawn, strict=True):
            facts[name][attribute] = value
    return facts


def _invented(rng: random.Random, shape: str, taken: set[str]) -> str:
    """Return a new pronounceable word; ``C`` and ``V`` in ``shape`` stand for a consonant and a vowel."""
    while True:
        word = "".join(rng.choice("bdfgklmnprstvz" if s == "C" else "aeiou") for s in shape)
        if word not in taken:
            taken.add(word)
            return word


def _language(rng: random.Random, name: str, order: str, adjective_first: bool, taken: set[str]) -> Language:
    english = [*(noun for noun, _ in NOUNS[:12]), *ADJECTIVES[:8], *(verb for verb, _ in DEEDS)]
    words = {word: _invented(rng, "CVCV", taken) for word in english}
    return Language(name, words, order, adjective_first)


@lru_cache(maxsize=4)
def build_world(seed: int = WORLD_SEED) -> World:
    """Return the world of a seed.

    Raises:
        UsageError: if the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed: {seed} is negative; give a whole number from 0 on")
    rng = random.Random(f"world-{seed}")
    taken: set[str] = set()
    cities = tuple(_invented(rng, "CVCCV", taken).capitalize() for _ in range(10))
    shapes = (rng.choice(("CVC", "CVCV")) for _ in range(PEOPLE + NEWCOMERS))
    names = tuple(_invented(rng, shape, taken).capitalize() for shape in shapes)
    people, newcomers = names[:PEOPLE], names[PEOPLE:]
    facts = assign_facts(people, {"city": cities, "job": JOBS, "pet": PETS}, rng)
    first = _language(rng, "zemi", "OSV", False, taken)
    second = _language(rng, "torvak", "VSO", True, taken)
    return World(seed, cities, facts, newcomers, first, second)
