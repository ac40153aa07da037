"""Sequences as Avalanche benchmarks, and benchmarks as sequences."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from forgetting.avalanche import (
    ArraySequence,
    ArraySplit,
    ArrayTask,
    as_benchmark,
    digits_benchmark,
    digits_sequence,
    from_benchmark,
    local_benchmark,
    mnist_sequence,
)
from forgetting.errors import UsageError
from forgetting.tasks.encode import Collator, encode_examples
from forgetting.tasks.task import Sequence
from tests.mitigations.test_conformance import TASKS, TOKENIZER

TEXT = Sequence("text", tuple(TASKS))
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist_t10k"


def test_text_becomes_dictionary_batches_of_the_features() -> None:
    benchmark = as_benchmark(TEXT, TOKENIZER, max_length=16)
    assert [len(stream) for stream in (benchmark.train_stream, benchmark.test_stream)] == [2, 2]
    dataset = benchmark.train_stream[1].dataset
    (batch,) = DataLoader(dataset, batch_size=99, collate_fn=dataset.collate_fn)
    expected = Collator.for_tokenizer(TOKENIZER)(encode_examples(TOKENIZER, TASKS[1].train, 16))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(value, expected[key]) for key, value in batch.items())
    assert from_benchmark(benchmark) is TEXT


def test_an_argument_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="is of text, which needs a tokenizer"):
        as_benchmark(TEXT)
    with pytest.raises(UsageError, match="is of text, which has no scenario 'class'"):
        as_benchmark(TEXT, TOKENIZER, scenario="class")
    with pytest.raises(UsageError, match="is of arrays, which need no tokenizer"):
        as_benchmark(digits_sequence("split"), TOKENIZER)


def _labels(benchmark: Any) -> list[set[int]]:
    return [set(e.dataset.targets.uniques) for e in benchmark.train_stream]


def test_scenarios_name_the_classes_of_split_digits() -> None:
    sequence = digits_sequence("split", seed=3)
    task, domain, classes = (as_benchmark(sequence, scenario=s) for s in ("task", "domain", "class"))  # type: ignore[arg-type]
    assert _labels(task) == _labels(domain) == [{0, 1}] * 5
    assert _labels(classes) == [set(t.outputs) for t in sequence.tasks]
    assert sorted(set.union(*_labels(classes))) == list(range(10))
    assert [e.task_labels for e in task.train_stream] == [[i] for i in range(5)]
    for benchmark, label in ((task, 4), (domain, 0), (classes, 0)):
        x, y, t = next(iter(DataLoader(benchmark.test_stream[4].dataset, batch_size=7)))
        assert x.shape == (7, 64) and y.dtype == t.dtype == torch.int64 and set(t.tolist()) == {label}


def test_permuted_digits_share_their_classes_or_are_numbered_through() -> None:
    sequence = digits_sequence("permuted", tasks=2)
    assert _labels(as_benchmark(sequence, scenario="domain")) == [set(range(10))] * 2
    assert _labels(as_benchmark(sequence, scenario="class")) == [set(range(10)), set(range(10, 20))]
    (x, y), (other, same) = (task.train.tensors() for task in sequence.tasks)
    assert torch.equal(y, same) and not torch.equal(x, other)
    assert torch.equal(x.sort(1).values, other.sort(1).values)


def test_no_image_is_both_trained_and_tested_on_and_none_is_lost() -> None:
    sequence = digits_sequence("split", seed=1)
    counts = [(len(task.train), len(task.test)) for task in sequence.tasks]
    assert sum(sum(pair) for pair in counts) == 1797 and sum(test for _, test in counts) == 1797 // 4


@pytest.mark.parametrize("kind", ["split", "permuted"])
def test_a_benchmark_comes_back_as_the_sequence_that_it_shows(kind: Any) -> None:
    sequence = digits_sequence(kind, tasks=2)
    benchmark = as_benchmark(sequence, scenario="class")
    del benchmark.sequence  # as one of Avalanche's own
    found = from_benchmark(benchmark, name="digits")
    assert isinstance(found, ArraySequence) and len(found) == 2
    again = as_benchmark(found, scenario="class")
    for split in ("train", "test"):
        for i in range(2):
            first, second = (b.streams[split][i].dataset for b in (benchmark, again))
            assert list(first.targets) == list(second.targets)
            assert torch.equal(first[5][0], second[5][0])
            x, y = getattr(found.tasks[i], split).tensors()
            assert x.shape[1:] == (64,) and int(y.max()) == len(found.tasks[i].outputs) - 1


def test_one_test_experience_is_divided_among_the_training_ones() -> None:
    from avalanche.benchmarks import benchmark_from_datasets

    whole = as_benchmark(digits_sequence("split"), scenario="class")
    train = [e.dataset for e in whole.train_stream]
    test = whole.test_stream[0].dataset
    for experience in whole.test_stream[1:]:
        test = test.concat(experience.dataset)
    found = from_benchmark(benchmark_from_datasets(train=train, test=[test]))
    assert isinstance(found, ArraySequence)
    for task, experience in zip(found.tasks, whole.test_stream, strict=True):
        assert len(task.test) == len(experience.dataset)
        assert torch.equal(task.test[3][0], experience.dataset[3][0])
    with pytest.raises(UsageError, match="5 experiences to train on and 2 to test on"):
        from_benchmark(benchmark_from_datasets(train=train, test=train[:2]))


def test_sequences_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="tasks: 3: ten classes cannot be split"):
        digits_benchmark("split", tasks=3)
    with pytest.raises(UsageError, match="kind: 'rotated' is not one of split, permuted"):
        digits_benchmark("rotated")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has no tasks"):
        ArraySequence("none", ())
    split = ArraySplit(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    uneven = ArraySequence("uneven", (ArrayTask("a", split, split, (0,)), ArrayTask("b", split, split, (0, 1))))
    with pytest.raises(UsageError, match="'domain': needs as many classes in every task"):
        as_benchmark(uneven, scenario="domain")


def _idx(values: Tensor) -> bytes:
    return struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape) + bytes(values.flatten().tolist())


def _fake_mnist(folder: Path, *, parts: dict[str, int], zipped: bool) -> tuple[Tensor, Tensor]:
    """Random images under MNIST's names; the last part's images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in parts.items():
        images = torch.randint(256, (count, 28, 28), generator=generator)
        labels = torch.arange(count) % 10
        for what, values in (("images-idx3", images), ("labels-idx1", labels)):
            name = folder / f"{part}-{what}-ubyte{'.gz' if zipped else ''}"
            name.write_bytes(gzip.compress(_idx(values)) if zipped else _idx(values))
    return images, labels


def test_avalanches_split_mnist_from_a_local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UsageError, match=r"has not all files of torchvision's MNIST; put them there"):
        local_benchmark("SplitMNIST", tmp_path, n_experiences=5)
    images, labels = _fake_mnist(tmp_path / "MNIST" / "raw", parts={"train": 60, "t10k": 20}, zipped=False)
    benchmark = local_benchmark(
        "SplitMNIST", tmp_path, n_experiences=5, seed=0, train_transform=None, eval_transform=None
    )
    found = from_benchmark(benchmark, name="SplitMNIST")
    assert isinstance(found, ArraySequence)
    assert [(len(t.train), len(t.test)) for t in found.tasks] == [(12, 4)] * 5
    x, y = found.tasks[2].test.tensors()
    for label, digit in enumerate(found.tasks[2].outputs):
        torch.testing.assert_close(x[y == label, 0], images[labels == digit] / 255)
    with pytest.raises(UsageError, match="'SplitMNST' is none that can be made .*; did you mean 'SplitMNIST'"):
        local_benchmark("SplitMNST", tmp_path)


def test_mnist_as_a_sequence_reads_zipped_files_and_notes_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no t10k-images-idx3-ubyte"):
        mnist_sequence(tmp_path, "split")
    images, labels = _fake_mnist(tmp_path / "test", parts={"t10k": 40}, zipped=True)
    part = mnist_sequence(tmp_path / "test", "split")
    assert part.notes == {"data": "only MNIST's 10,000 test images: 10 of them held out"}
    assert sum(len(task.train) for task in part.tasks) == 30
    images, labels = _fake_mnist(tmp_path / "both", parts={"train": 30, "t10k": 20}, zipped=True)
    whole = mnist_sequence(tmp_path / "both", "permuted", tasks=2)
    assert not whole.notes and len(whole.tasks[0].train) == 30
    x, y = whole.tasks[0].test.tensors()
    assert torch.equal(y, labels)
    torch.testing.assert_close(x.sort(1).values, (images.flatten(1) / 255).sort(1).values)
    (tmp_path / "both" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"no labels at all"))
    with pytest.raises(UsageError, match="is not an idx file of MNIST's labels"):
        mnist_sequence(tmp_path / "both", "split")


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's test images are not in ../shared/data")
def test_the_real_images_of_mnist() -> None:
    sequence = mnist_sequence(MNIST, "split")
    assert sum(len(t.train) + len(t.test) for t in sequence.tasks) == 10_000
    x, _ = sequence.tasks[0].train.tensors()
    assert x.shape[1] == 784 and 0.1 < float(x.mean()) < 0.16
