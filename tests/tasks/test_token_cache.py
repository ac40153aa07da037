"""Tokenised once: the features are those of encoding anew, kept by what they were made of, and order no other data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from forgetting.config import SequenceConfig, TrainingConfig
from forgetting.families.decoder import Decoder
from forgetting.mitigations import build_mitigation
from forgetting.models import load_model
from forgetting.tasks import token_cache
from forgetting.tasks.encode import ExampleDataset, encode_examples
from forgetting.tasks.order import Shuffled
from forgetting.tasks.sequence import load_sequence
from forgetting.tasks.token_cache import TokenCache
from forgetting.trainer import ContinualTrainer, training_arguments

SEQUENCE = SequenceConfig(name="micro-5", tasks=("new_facts", "sorting"), train_size=24, test_size=4)


@pytest.fixture(scope="module")
def family() -> Decoder:
    return Decoder(load_model("micro"), load_sequence(SEQUENCE))


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_each_split_is_encoded_once_and_found_by_the_next_process(
    family: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = family.sequence.tasks
    encoded: list[str] = []
    encode = Decoder.encode

    def noted(self: Decoder, task: Any, examples: Any, length: int) -> Any:
        encoded.append(task.name)
        return encode(self, task, examples, length)

    monkeypatch.setattr(Decoder, "encode", noted)
    cache = TokenCache(tmp_path, family, "data")
    assert cache.features(first, "train", 96) == encode_examples(family.tokenizer, first.train, 96)
    assert cache.features(first, "train", 96) is cache.features(first, "train", 96)
    assert cache.features(first, "validation", 96) == encode_examples(family.tokenizer, first.validation, 96)
    assert cache.features(second, "train", 96) == encode_examples(family.tokenizer, second.train, 96)
    assert encoded == [first.name, first.name, second.name]
    files = modified(tmp_path)
    assert len(files) == 3 and all(name.endswith(".arrow") for name in files)  # no temporary one is left
    again = TokenCache(tmp_path, family, "data")
    assert again.features(first, "train", 96) == cache.features(first, "train", 96)
    assert len(encoded) == 3 and modified(tmp_path) == files


def test_what_features_depend_on_is_in_their_name(
    family: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = family.sequence.tasks[0]

    def count(data: str = "data", length: int = 96, of: Decoder = family) -> int:
        TokenCache(tmp_path, of, data).features(task, "train", length)
        return len(list(tmp_path.iterdir()))

    assert [count(), count(), count(data="other"), count(length=8)] == [1, 1, 2, 3]
    other = copy.copy(family)
    other.base = copy.copy(family.base)
    object.__setattr__(other.base, "tokenizer", copy.deepcopy(family.tokenizer))
    assert count(of=other) == 3  # an equal tokenizer
    other.tokenizer.add_tokens(["newword"])
    assert count(of=other) == 4
    monkeypatch.setattr(token_cache, "_code", lambda: ["another version"])
    assert count() == 5


def test_a_torn_file_is_written_again(family: Decoder, tmp_path: Path) -> None:
    task = family.sequence.tasks[0]
    right = list(TokenCache(tmp_path, family, "data").features(task, "train", 96))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for torn in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(torn)
        assert TokenCache(tmp_path, family, "data").features(task, "train", 96) == right
        assert path.read_bytes() == whole


class Noted(ExampleDataset):
    """Which features were asked for, in order."""

    def __init__(self, features: Any) -> None:
        super().__init__(features)
        self.order: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.order.append(index)
        return super().__getitem__(index)


def trained(family: Decoder, features: Any, scratch: Path) -> tuple[list[int], list[str]]:
    """The order of sample ids, and the losses bit for bit, of two epochs."""
    dataset = Noted(features)
    config = TrainingConfig(epochs=2, batch_size=5, max_length=96)
    trainer = ContinualTrainer(
        copy.deepcopy(family.base.model),
        dataset,
        build_mitigation("naive"),
        training_arguments(config, seed=3, output=str(scratch)),
        family.tokenizer,
    )
    trainer.train()
    return dataset.order, [loss.hex() for loss in trainer.losses]


def test_the_order_and_the_losses_are_those_of_features_in_memory(
    family: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = family.sequence.tasks[0]
    order, losses = trained(family, TokenCache(tmp_path, family, "data").features(task, "train", 96), tmp_path)
    monkeypatch.delattr(ContinualTrainer, "_get_train_sampler")  # the trainer's own, and accelerate's
    assert (order, losses) == trained(family, encode_examples(family.tokenizer, task.train, 96), tmp_path)
    assert sorted(order) == sorted([*range(24)] * 2) and order[:24] != order[24:]


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (7, 3), (2500, 11)])
def test_shuffled_is_the_order_of_accelerate(size: int, seed: int) -> None:
    theirs = SeedableRandomSampler(range(size), data_seed=seed)
    ours = Shuffled(size, seed)
    state = torch.get_rng_state()
    passes = [list(ours) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state) and len(ours) == size
    assert passes == [list(theirs) for _ in range(3)]
    ours.set_epoch(1)
    assert list(ours) == passes[1]
