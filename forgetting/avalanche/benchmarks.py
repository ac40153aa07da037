"""Our sequences as Avalanche benchmarks, and theirs as our sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets
from avalanche.benchmarks.scenarios import with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)
from torch import Tensor
from torch.utils.data import Dataset

from forgetting.avalanche.arrays import ArraySequence, ArraySplit, ArrayTask, Scenario
from forgetting.errors import UsageError
from forgetting.tasks.encode import BOOKKEEPING, Collator, ExampleDataset, encode_examples
from forgetting.tasks.task import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCollate:
    """Features to a batch for the model: a dictionary of tensors (B, T), see ``forgetting.tasks.encode``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._collate = Collator.for_tokenizer(tokenizer)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate B features."""
        unused = set(BOOKKEEPING) - {"weights"}  # those are for a mitigation's loss
        return {key: value for key, value in self._collate(features).items() if key not in unused}


def text_dataset(features: Dataset, tokenizer: PreTrainedTokenizerBase, task: int) -> AvalancheDataset:
    """Features (``forgetting.tasks.encode``) as a data set whose batches are dictionaries."""
    labels = DataAttribute([task] * len(features), "targets_task_labels")  # type: ignore[arg-type]  # map-style
    return AvalancheDataset([features], data_attributes=[labels], collate_fn=TextCollate(tokenizer))


def array_dataset(inputs: Tensor | Dataset, labels: Tensor, task: int) -> AvalancheDataset:
    """Data whose batches are [x, y, task label], as Avalanche's strategies on classes take them."""
    attributes = [DataAttribute(labels.tolist(), "targets"), TaskLabels([task] * len(labels))]
    return TaskAwareSupervisedClassificationDataset([ArraySplit(inputs, labels)], data_attributes=attributes)


def as_benchmark(
    sequence: Sequence | ArraySequence,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int = 256,
    scenario: Scenario | None = None,
) -> CLScenario:
    """Return a benchmark with an experience per task.

    Args:
        sequence: Text: batches are dictionaries (``input_ids``, ``attention_mask``, ``labels``), for
            :class:`~forgetting.avalanche.TextTemplate`; streams ``train``, ``validation`` and ``test``. Arrays: batches
            are [x, y, task label], for any strategy; streams ``train`` and ``test``.
        tokenizer: For text.
        max_length: Tokens per example of text; longer prompts lose their beginning.
        scenario: For arrays; ``task`` where not given. Only there are experiences task-aware.

    Raises:
        UsageError: if an argument is missing, or is for the other kind of sequence.
    """
    if isinstance(sequence, Sequence):
        if tokenizer is None or scenario is not None:
            wrong = "needs a tokenizer" if tokenizer is None else f"has no scenario {scenario!r}: a model has one head"
            raise UsageError(f"as_benchmark: sequence {sequence.name!r} is of text, which {wrong}")
        streams = {
            split: [
                text_dataset(ExampleDataset(encode_examples(tokenizer, getattr(task, split), max_length)), tokenizer, i)
                for i, task in enumerate(sequence.tasks)
            ]
            for split in ("train", "validation", "test")
        }
        benchmark = benchmark_from_datasets(**streams)
    else:
        if tokenizer is not None:
            raise UsageError(f"as_benchmark: sequence {sequence.name!r} is of arrays, which need no tokenizer")
        benchmark = _array_benchmark(sequence, scenario or "task")
    benchmark.sequence = sequence
    return benchmark


def _array_benchmark(sequence: ArraySequence, scenario: Scenario) -> CLScenario:
    classes = [torch.tensor(numbers) for numbers in sequence.classes(scenario)]
    streams = {
        split: [
            array_dataset(data.inputs, classes[i][data.labels], i if scenario == "task" else 0)
            for i, data in enumerate(getattr(task, split) for task in sequence.tasks)
        ]
        for split in ("train", "test")
    }
    benchmark = with_classes_timeline(benchmark_from_datasets(**streams))
    return with_task_labels(benchmark) if scenario == "task" else benchmark


def from_benchmark(benchmark: Any, *, name: str = "benchmark") -> Sequence | ArraySequence:
    """Return a benchmark's experiences as a sequence; what :func:`as_benchmark` made of one is that one.

    Inputs are read when they are asked for, with the benchmark's own transforms (a stream of random crops stays one).

    Args:
        benchmark: Any of Avalanche's with a ``train_stream`` and a ``test_stream`` of classes (SplitMNIST, CORe50, …).
            Where there is one test experience for many training ones, each is tested on its own classes of it.
        name: Of the sequence.

    Raises:
        UsageError: if it has no such streams, or an experience has no classes.
    """
    if isinstance(getattr(benchmark, "sequence", None), (Sequence, ArraySequence)):
        return benchmark.sequence
    streams = [list(getattr(benchmark, f"{split}_stream", ())) for split in ("train", "test")]
    if not streams[0] or len(streams[1]) not in (1, len(streams[0])):
        raise UsageError(
            f"from_benchmark: {name!r} has {len(streams[0])} experiences to train on and {len(streams[1])} to test on; "
            "it needs as many of both, or one to test on"
        )
    tests = streams[1] * len(streams[0]) if len(streams[1]) == 1 else streams[1]
    tasks = []
    for i, (train, test) in enumerate(zip(streams[0], tests, strict=True)):
        targets, test_targets = _targets(train.dataset, name), _targets(test.dataset, name)
        outputs = sorted(set(targets))
        kept = [k for k, target in enumerate(test_targets) if target in set(outputs)]
        if not kept:
            raise UsageError(f"from_benchmark: {name!r}: experience {i} has no test example of its classes {outputs}")
        test_data = test.dataset.eval()
        tasks.append(
            ArrayTask(
                f"experience {i}",
                ArraySplit(train.dataset.train(), _local(targets, outputs)),
                ArraySplit(
                    test_data if len(kept) == len(test_targets) else test_data.subset(kept),
                    _local([test_targets[k] for k in kept], outputs),
                ),
                tuple(outputs),
            )
        )
    return ArraySequence(name, tuple(tasks))


def _targets(dataset: Any, name: str) -> list[int]:
    if not hasattr(dataset, "targets"):
        raise UsageError(f"from_benchmark: {name!r}: its data have no targets; only classification is a sequence here")
    return [int(target) for target in dataset.targets]


def _local(targets: Items[int], outputs: list[int]) -> Tensor:
    position = {output: label for label, output in enumerate(outputs)}
    return torch.tensor([position[target] for target in targets])
