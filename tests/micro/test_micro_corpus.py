"""The generator: determinism, disjoint splits, and that pretraining never states what a probe asks."""

import math
import random
from collections import Counter, defaultdict
from itertools import islice

import pytest

from forgetting.errors import UsageError
from forgetting.micro.corpus import MIXTURE, SPLITS, pretraining_documents, split_of, stream
from forgetting.micro.probes import (
    ITEMS,
    generate_probe,
    load_probe,
    probe_chance,
    probe_directory,
    probe_names,
    write_probes,
)
from forgetting.micro.skills import SKILLS
from forgetting.micro.skills.base import comparable
from forgetting.micro.world import build_world

DOCUMENTS = 30_000


@pytest.fixture(scope="module")
def documents():
    return pretraining_documents(DOCUMENTS, seed=0)


def test_world_follows_from_its_seed_alone():
    random.seed(1)
    before = random.getstate()
    first = build_world.__wrapped__(3)
    assert random.getstate() == before
    random.seed(2)
    assert build_world.__wrapped__(3) == first
    assert build_world(4).facts != first.facts
    with pytest.raises(UsageError, match="seed: -1"):
        build_world(-1)


def test_world_holds_what_the_skills_need():
    world = build_world()
    assert len(world.people) >= 100
    assert not set(world.people) & set(world.newcomers)
    for attribute in ("city", "job", "pet"):
        counts = Counter(facts[attribute] for facts in world.facts.values())
        assert max(counts.values()) - min(counts.values()) <= 1
    first, second = world.language, world.second_language
    assert not set(first.words.values()) & set(second.words.values())
    assert first.order != second.order


@pytest.mark.parametrize("split", SPLITS)
def test_stream_is_deterministic_and_seeded(split):
    assert pretraining_documents(50, 7, split) == pretraining_documents(50, 7, split)
    assert pretraining_documents(50, 7, split) != pretraining_documents(50, 8, split)
    assert list(islice(stream(7, split), 10)) == pretraining_documents(10, 7, split)


def test_splits_share_no_document(documents):
    held_out = pretraining_documents(2000, 5, "held_out")
    validation = pretraining_documents(2000, 5, "validation")
    assert not set(documents) & set(held_out)
    assert not set(documents) & set(validation)
    assert not set(validation) & set(held_out)
    assert {split_of(d) for d in held_out} == {"held_out"}


def test_every_skill_is_in_the_mixture():
    assert set(MIXTURE) == set(SKILLS)
    assert len(SKILLS) >= 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, "train"), "count: 0"),
        ((1, -1, "train"), "seed: -1"),
        ((1, 0, "held-out"), "did you mean 'held_out'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        pretraining_documents(*arguments)


def test_no_probe_item_is_in_the_pretraining_text(documents):
    items = defaultdict(list)
    for name in probe_names():
        for item in load_probe(name):
            words = item.text.split()
            items[tuple(words[:3])].append(words)
    leaked = []
    for document in documents:
        words = document.split()
        for i in range(len(words) - 2):
            for item in items.get(tuple(words[i : i + 3]), ()):
                if words[i : i + len(item)] == item:
                    leaked.append(" ".join(item))
    assert leaked == []


def test_every_fact_is_in_the_pretraining_text_in_several_phrasings(documents):
    seen = set("\n".join(documents).split("\n"))
    from forgetting.micro.skills.facts import PHRASINGS

    for person, facts in build_world().facts.items():
        for attribute, value in facts.items():
            said = [f"{p.replace('{}', person)} {value}" in seen for p in PHRASINGS[attribute]]
            assert said.count(True) == len(said) - 1, (person, attribute)


@pytest.mark.parametrize("name", probe_names())
def test_shipped_probe_is_what_its_skill_generates(name):
    assert load_probe(name) == generate_probe(name)


def test_shipped_probe_files_are_what_is_written(tmp_path):
    write_probes(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (probe_directory() / file.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2 * len(probe_names())


@pytest.mark.parametrize("name", probe_names())
def test_probe_items_are_fair(name):
    items = load_probe(name)
    assert len(items) == ITEMS >= 200
    assert len({item.text for item in items}) == ITEMS
    options = round(1 / probe_chance(name))
    for item in items:
        assert len(item.choices) == len(set(item.choices)) == options
        assert item.context == item.context.strip()
        gold = item.choices[item.gold]
        assert all(comparable(gold, c) for c in item.choices if c != gold)
    positions = Counter(item.gold for item in items)
    assert max(positions.values()) - min(positions.values()) <= 1


@pytest.mark.parametrize("name", probe_names())
def test_neither_word_frequency_nor_length_solves_a_probe(name, documents):
    counts = Counter(word for document in documents for word in document.split())
    total = sum(counts.values())
    items = load_probe(name)

    def accuracy(score):
        return sum(
            item.gold == max(range(len(item.choices)), key=lambda i: score(item.choices[i])) for item in items
        ) / len(items)

    # Three standard errors of guessing on 200 items are .106.
    limit = probe_chance(name) + 0.106
    assert accuracy(lambda c: sum(math.log((counts[w] + 0.5) / total) for w in c.split())) <= limit
    for sign in (1, -1):
        right = 0.0
        for item in items:
            lengths = [sign * len(c.split()) for c in item.choices]
            best = [i for i, n in enumerate(lengths) if n == max(lengths)]
            right += (item.gold in best) / len(best)
        assert right / len(items) <= limit


def test_unknown_probe_is_named():
    with pytest.raises(UsageError, match="did you mean 'micro_grammar'"):
        load_probe("micro_gramar")
