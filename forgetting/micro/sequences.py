"""The downstream sequences of the embedded world, at chosen similarity to what was pretrained."""

from __future__ import annotations

import random

from forgetting.errors import UsageError, did_you_mean
from forgetting.micro import domains
from forgetting.micro.world import WORLD_SEED, build_world
from forgetting.tasks.task import Example, Sequence, Task

SEQUENCES: dict[str, dict[str, domains.Domain]] = {
    "micro-5": {
        "new_facts": domains.new_facts,
        "routing": domains.routing,
        "sorting": domains.sorting,
        "second_language": domains.second_language,
        "formal": domains.formal,
    },
    "micro-tuning": {
        "storing": domains.storing,
        "shifting": domains.shifting,
    },
    "micro-similar": {
        "more_arithmetic": domains.more_arithmetic,
        "new_people": domains.new_people,
        "new_agreement": domains.new_agreement,
    },
    "micro-conflict": {
        "flipped_sentiment": domains.flipped_sentiment,
        "changed_facts": domains.changed_facts,
        "wrong_arithmetic": domains.wrong_arithmetic,
    },
    "micro-labels": {
        "routing": domains.routing,
        "new_facts": domains.new_facts,
        "flipped_sentiment": domains.flipped_sentiment,
    },
    "micro-relearn": {
        "new_facts": domains.new_facts,
        "known_facts": domains.known_facts,
        "new_people": domains.new_people,
    },
}
"""Sequence to task to domain: five new domains; two others, to tune on; three close to pretraining; three that
contradict it; three of few labels, which a classifier can learn; a new domain, then facts as in pretraining, of half
of the known people and of new ones."""

_ATTEMPTS = 20
"""Draws per example wanted before a domain is taken to be used up."""


def load_micro_sequence(
    name: str,
    *,
    train_size: int = 500,
    validation_size: int = 100,
    test_size: int = 200,
    seed: int = 0,
) -> Sequence:
    """Return a sequence of the embedded world.

    No prompt occurs twice in a task, within a split or across splits. The test split depends on the seed and
    its own size only, so that training on less or more is scored on the same items.

    Args:
        name: Of SEQUENCES.
        train_size: Training examples per task.
        validation_size: Validation examples per task.
        test_size: Test examples per task.
        seed: What there is to learn (new facts, ...) and which examples are drawn.

    Raises:
        UsageError: if the name is unknown, a size not positive, or greater than a domain can give.
    """
    if name not in SEQUENCES:
        raise UsageError(f"sequence: {name!r} is not an embedded sequence{did_you_mean(name, SEQUENCES)}")
    sizes = {"train_size": train_size, "validation_size": validation_size, "test_size": test_size}
    for field, size in sizes.items():
        if size < 1:
            raise UsageError(f"{field}: {size} is not positive; give the number of examples wanted")
    tasks = []
    for task, domain in SEQUENCES[name].items():
        rng = random.Random(f"{name}-{task}-{seed}")
        tasks.append(_task(task, domain, rng, train_size, validation_size, test_size))
    return Sequence(name, tuple(tasks))


def _task(name: str, domain: domains.Domain, rng: random.Random, train: int, validation: int, test: int) -> Task:
    draw = domain(build_world(WORLD_SEED), rng)
    examples: dict[str, Example] = {}
    wanted = train + validation + test
    for _ in range(_ATTEMPTS * wanted):
        example = draw(rng)
        examples.setdefault(example.prompt, example)
        if len(examples) == wanted:
            break
    else:
        raise UsageError(
            f"train_size: task {name!r} has only about {len(examples)} different examples, "
            f"{wanted} were asked for over the three splits; ask for fewer"
        )
    items = tuple(examples.values())
    tested, rest = items[:test], items[test:]
    chosen = [example.choices for example in tested if example.choices is not None]
    return Task(
        name=name,
        train=rest[validation:],
        validation=rest[:validation],
        test=tested,
        metric="accuracy" if chosen else "exact_match",
        chance=sum(1 / len(choices) for choices in chosen) / len(chosen) if chosen else 0.0,
        max_new_tokens=48,
    )
