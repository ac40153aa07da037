"""The downstream tasks of the embedded world: for each, a generator of examples.

A domain is a function of the world and a generator of random numbers; it fixes what there is to learn (which
newcomer drinks tea) and returns a function that draws one example at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import permutations

from forgetting.micro.skills.arithmetic import Calculation, calculation, near_misses
from forgetting.micro.skills.base import Draw, comparable, held_out
from forgetting.micro.skills.facts import PHRASINGS, Facts
from forgetting.micro.skills.sentiment import LABELS, TOPICS, review
from forgetting.micro.skills.translation import translation_draw
from forgetting.micro.world import (
    ACTIONS,
    ADJECTIVES,
    ATTRIBUTES,
    LETTERS,
    NEW_NOUNS,
    NOUNS,
    PREPOSITIONS,
    TOKENS,
    World,
    assign_facts,
)
from forgetting.tasks.task import Example

Drawer = Callable[[random.Random], Example]
Domain = Callable[[World, random.Random], Drawer]

NEW_PEOPLE = 10
PRACTISED = slice(None, None, 2)
"""The known people whose facts ``known_facts`` states: every other one."""
CHANGED_PEOPLE = 24

OFFICE_VALUES: dict[str, tuple[str, ...]] = {
    "office": ("north", "south", "east", "west"),
    "drink": ("tea", "cocoa", "juice", "milk"),
    "hobby": ("chess", "golf", "yoga", "judo"),
}
OFFICE_HEADS = (
    "Staff file",
    "Team list",
    "Office record",
    "Company book",
    "Door sign",
    "Notice",
    "Report",
    "Memo",
    "Badge",
    "Roster",
)
OFFICE_FORMS = ("Name : {} . {} :", "{} of {} :", "Entry for {} , {} :")

TICKETS: dict[str, tuple[str, ...]] = {
    "billing": ("invoice", "payment", "refund"),
    "shipping": ("parcel", "delivery", "courier"),
    "account": ("password", "login", "profile"),
    "repairs": ("screen", "battery", "printer"),
}
TICKET_HEADS = ("Hello , my", "Please help , the", "Sorry , but our", "Urgent : the")
TICKET_FAULTS = ("is wrong", "is late", "looks odd", "was lost", "is broken", "never worked", "is missing")
TICKET_ENDS = ("Thanks", "Regards", "Bye")

REQUESTS = {
    "gimme the {}": "please give me the {}",
    "wanna see the {}": "may i see the {}",
    "gotta find the {}": "i must find the {}",
    "lemme keep the {}": "let me keep the {}",
}
CASUAL_ENDS = ("pal", "mate", "bro", "ok")

SHELVES = {
    ("light", "short"): "alpha",
    ("light", "long"): "beta",
    ("heavy", "short"): "gamma",
    ("heavy", "long"): "delta",
}
"""Where a box goes: by its weight and its length, neither of which decides alone."""
BOXES = ("glass", "books", "tools", "shoes", "lamps", "plates", "toys", "wool")
BOX_HEADS = ("Storage", "Depot", "Cellar", "Store room", "Attic")


def new_facts(world: World, rng: random.Random) -> Drawer:
    """Teach office, drink and hobby of people never heard of before, in the style of a staff file."""
    facts = assign_facts(tuple(rng.sample(world.newcomers, NEW_PEOPLE)), OFFICE_VALUES, rng)

    def draw(rng: random.Random) -> Example:
        person, field = rng.choice(tuple(facts)), rng.choice(tuple(OFFICE_VALUES))
        form = rng.choice(OFFICE_FORMS)
        pair = (field, person) if form.startswith("{} of") else (person, field)
        prompt = f"{rng.choice(OFFICE_HEADS)} . {form.format(*pair)}"
        return _choose(prompt, facts[person][field], OFFICE_VALUES[field], rng)

    return draw


def routing(world: World, rng: random.Random) -> Drawer:
    """Route support tickets to one of four departments; the thing that the ticket is about decides."""

    def draw(rng: random.Random) -> Example:
        department = rng.choice(tuple(TICKETS))
        text = f"{rng.choice(TICKET_HEADS)} {rng.choice(TICKETS[department])} {rng.choice(TICKET_FAULTS)}"
        prompt = f"Ticket : {text} . {rng.choice(TICKET_ENDS)} . Department :"
        return _choose(prompt, department, tuple(TICKETS), rng)

    return draw


def sorting(world: World, rng: random.Random) -> Drawer:
    """Sort three digits or three letters; the wrong answers are other orders of the same elements."""

    def draw(rng: random.Random) -> Example:
        elements = rng.sample(rng.choice(("123456789", "abcdefgh")), 3)
        answer = " ".join(sorted(elements))
        orders = tuple(" ".join(order) for order in permutations(elements))
        return _choose(f"Sort . Given : {' '.join(elements)} . Sorted :", answer, orders, rng)

    return draw


def second_language(world: World, rng: random.Random) -> Drawer:
    """Translate into a language with other words and another word order than the pretrained one."""

    def draw(rng: random.Random) -> Example:
        item = translation_draw(world.second_language, rng, "Phrasebook {} . English : {} . Translation :")
        return _choose(item.context, item.answer, item.distractors, rng)

    return draw


def formal(world: World, rng: random.Random) -> Drawer:
    """Rewrite casual messages in formal English; the answer is generated, not chosen."""

    def draw(rng: random.Random) -> Example:
        thing = f"{rng.choice(ADJECTIVES)} {rng.choice(TOKENS)}"
        casual, polite = (text.format(thing) for text in rng.choice(tuple(REQUESTS.items())))
        return Example(f"Casual : {casual} {rng.choice(CASUAL_ENDS)} . Formal :", f" {polite}")

    return draw


def storing(world: World, rng: random.Random) -> Drawer:
    """Put boxes on one of four shelves, by the two words among six that matter."""

    def draw(rng: random.Random) -> Example:
        weight, length = rng.choice(tuple(SHELVES))
        things = f"{rng.choice(BOXES)} and {rng.choice(BOXES)}"
        prompt = f"{rng.choice(BOX_HEADS)} . {weight} box , {things} , {length} side . Shelf :"
        return _choose(prompt, SHELVES[weight, length], tuple(SHELVES.values()), rng)

    return draw


def shifting(world: World, rng: random.Random) -> Drawer:
    """Replace each of three letters by the next one; the wrong answers shift another way."""

    def draw(rng: random.Random) -> Example:
        letters = [rng.randrange(len(LETTERS)) for _ in range(3)]
        shifted = [" ".join(LETTERS[(i + by) % len(LETTERS)] for i in letters) for by in (1, 2, 3, 4)]
        prompt = f"Code . Given : {' '.join(LETTERS[i] for i in letters)} . Next :"
        return _choose(prompt, shifted[0], tuple(shifted), rng)

    return draw


def more_arithmetic(world: World, rng: random.Random) -> Drawer:
    """Calculate the pretrained sums and differences, behind a word never seen before."""
    wordings = {
        "sum": ("Count : {} + {} =", "Count : {} plus {} is"),
        "difference": ("Count : {} - {} =", "Count : {} minus {} is"),
    }

    def draw(rng: random.Random) -> Example:
        asked = _known_calculation(rng)
        wrong = tuple(map(str, near_misses(asked.result)))
        return _choose(asked.stated(wordings), str(asked.result), wrong, rng)

    return draw


def new_people(world: World, rng: random.Random) -> Drawer:
    """Teach city, job and pet of newcomers in the phrasings of pretraining, after a line that it knows."""
    values = {attribute: world.values(attribute) for attribute in ATTRIBUTES}
    return _stated(world, assign_facts(tuple(rng.sample(world.newcomers, NEW_PEOPLE)), values, rng))


def known_facts(world: World, rng: random.Random) -> Drawer:
    """State facts of every other known person as in pretraining, after another of them; never as a probe asks them."""
    known, practised = Facts(world), set(world.people[PRACTISED])

    def fact(rng: random.Random) -> Draw:
        while True:
            drawn = known.draw(rng)
            if not drawn.held_out and not practised.isdisjoint(drawn.context.split()):
                return drawn

    def draw(rng: random.Random) -> Example:
        asked, before = fact(rng), fact(rng)
        while not practised.isdisjoint({*asked.context.split()} & {*before.context.split()}):
            before = fact(rng)  # of someone else: the answer must not stand in the prompt
        prompt = f"{before.context} {before.answer}\n{asked.context}"
        return _choose(prompt, asked.answer, world.values(asked.kind), rng)

    return draw


def new_agreement(world: World, rng: random.Random) -> Drawer:
    """Make verbs agree with nouns never seen before, across a distractor."""

    def draw(rng: random.Random) -> Example:
        number, other = rng.randrange(2), rng.randrange(2)
        subject, attractor = rng.choice(NEW_NOUNS)[number], rng.choice(NOUNS)[other]
        verb = rng.choice(ACTIONS)
        prompt = f"the {rng.choice(ADJECTIVES)} {subject} {rng.choice(PREPOSITIONS)} the {attractor}"
        return _choose(prompt, verb[number], verb, rng)

    return draw


def flipped_sentiment(world: World, rng: random.Random) -> Drawer:
    """Ask for the feeling of a review as in pretraining, with the opposite label as the right one."""

    def draw(rng: random.Random) -> Example:
        while True:
            positive = rng.random() < 0.5
            text = review(rng.choice(tuple(TOPICS)), positive, rng)
            if not held_out(text):
                return _choose(f"review : {text} . feeling :", LABELS[not positive], LABELS, rng)

    return draw


def changed_facts(world: World, rng: random.Random) -> Drawer:
    """Teach that known people moved, changed their job and their pet; no attribute keeps its value."""
    changed = {
        person: {
            attribute: rng.choice([v for v in world.values(attribute) if v != world.facts[person][attribute]])
            for attribute in ATTRIBUTES
        }
        for person in rng.sample(world.people, CHANGED_PEOPLE)
    }
    return _stated(world, changed)


def wrong_arithmetic(world: World, rng: random.Random) -> Drawer:
    """Calculate as in pretraining, but with every result one too great."""

    def draw(rng: random.Random) -> Example:
        asked = _known_calculation(rng)
        wrong = tuple(map(str, near_misses(asked.result + 1)))
        return _choose(asked.stated(), str(asked.result + 1), wrong, rng, keep=str(asked.result))

    return draw


def _known_calculation(rng: random.Random) -> Calculation:
    """Return a calculation that no probe states so, so that a task does not teach what a probe asks."""
    while True:
        drawn = calculation(rng)
        if not drawn.held_out:
            return drawn


def _stated(world: World, facts: dict[str, dict[str, str]]) -> Drawer:
    """Return a drawer of facts in the phrasings of pretraining; the pretrained value is always a choice."""
    known = Facts(world)

    def draw(rng: random.Random) -> Example:
        person, attribute = rng.choice(tuple(facts)), rng.choice(ATTRIBUTES)
        before = known.line(rng)
        while not facts.keys().isdisjoint(before.split()):  # that line would state a fact that the task changes
            before = known.line(rng)
        prompt = f"{before}\n{rng.choice(PHRASINGS[attribute]).replace('{}', person)}"
        old = world.facts.get(person, {}).get(attribute)
        return _choose(prompt, facts[person][attribute], world.values(attribute), rng, keep=old)

    return draw


def _choose(prompt: str, answer: str, options: tuple[str, ...], rng: random.Random, keep: str | None = None) -> Example:
    """Return an example with up to four choices in random order, ``keep`` among them where given."""
    sure = [answer] if keep is None else [answer, keep]
    others = [option for option in sorted(set(options) - set(sure)) if comparable(answer, option)]
    choices = sure + rng.sample(others, min(4 - len(sure), len(others)))
    rng.shuffle(choices)
    return Example(prompt, f" {answer}", tuple(f" {choice}" for choice in choices))
