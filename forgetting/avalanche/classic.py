"""Classic benchmarks without a network: scikit-learn's digits, which are embedded, and local copies of others."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from forgetting.avalanche.arrays import ArraySequence, Scenario, image_sequence
from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

Kind = Literal["split", "permuted"]
MNIST_PARTS = {"train": "train", "test": "t10k"}
LOCAL = {
    "SplitMNIST": "MNIST",
    "PermutedMNIST": "MNIST",
    "RotatedMNIST": "MNIST",
    "SplitFMNIST": "FashionMNIST",
    "SplitCIFAR10": "CIFAR10",
    "SplitCIFAR100": "CIFAR100",
}
"""Avalanche's benchmarks to torchvision's data sets."""


def _orders(kind: str, rng: np.random.Generator, pixels: int, tasks: int) -> list[Tensor]:
    if kind not in ("split", "permuted"):
        raise UsageError(f"kind: {kind!r} is not one of split, permuted")
    if tasks < 1 or (kind == "split" and 10 % tasks):
        raise UsageError(
            f"tasks: {tasks}: ten classes cannot be split into so many tasks of one size; give 1, 2, 5, 10"
        )
    if kind == "permuted":
        return [torch.from_numpy(rng.permutation(pixels)) for _ in range(tasks)]
    return list(torch.from_numpy(rng.permutation(10).reshape(tasks, -1)))


def _cut(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor], ...]:
    """Train, and a quarter held out."""
    order = torch.from_numpy(rng.permutation(len(images)))
    test, train = order[: len(order) // 4], order[len(order) // 4 :]
    return (images[train], labels[train]), (images[test], labels[test])


def digits_sequence(kind: Kind, *, seed: int = 0, tasks: int = 5) -> ArraySequence:
    """The 1,797 images of 8×8 pixels that come with scikit-learn, as a sequence.

    Args:
        kind: ``split``: classes in random order, 10 / ``tasks`` of them per task; ``permuted``: all ten, with another
            permutation of the 64 pixels per task (the first too).
        seed: Of the quarter that is held out, and of the order or the permutations.
        tasks: T.

    Raises:
        UsageError: for another kind, or a number of tasks that does not divide the classes.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    rng = np.random.default_rng(seed)
    train, test = _cut(images, labels, rng)
    return image_sequence(f"{kind} digits", kind, train, test, _orders(kind, rng, 64, tasks))


def digits_benchmark(kind: Kind, *, scenario: Scenario = "task", seed: int = 0, tasks: int = 5) -> CLScenario:
    """:func:`digits_sequence` as an Avalanche benchmark."""
    from forgetting.avalanche.benchmarks import as_benchmark

    return as_benchmark(digits_sequence(kind, seed=seed, tasks=tasks), scenario=scenario)


def mnist_sequence(root: str | Path, kind: Kind, *, seed: int = 0, tasks: int = 5) -> ArraySequence:
    """MNIST from local files, as a sequence; what is tested on is the published test set, where both sets are there.

    Args:
        root: A folder with ``train-images-idx3-ubyte`` and ``t10k-…`` (``.gz`` or not), or with ``MNIST/raw`` in it.
            Where it has the 10,000 ``t10k`` images alone, a quarter of them is held out and the rest trained on, and
            ``notes`` say so.
        kind: As of :func:`digits_sequence`.
        seed: Of the order or the permutations, and of what is held out where that is cut here.
        tasks: T.

    Raises:
        UsageError: if the files are not there, or are not MNIST's.
    """
    folder = next((f for f in (Path(root) / "MNIST" / "raw", Path(root)) if f.is_dir()), Path(root))
    found = {part: _mnist_part(folder, prefix) for part, prefix in MNIST_PARTS.items()}
    rng = np.random.default_rng(seed)
    notes: dict[str, int | str] = {}
    if found["test"] is None:
        raise UsageError(f"root {str(root)!r}: has no t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (.gz or not)")
    if found["train"] is None:
        train, test = _cut(*found["test"], rng)
        notes["data"] = f"only MNIST's 10,000 test images: {len(test[1])} of them held out"
    else:
        train, test = found["train"], found["test"]
    sequence = image_sequence(f"{kind} MNIST", kind, train, test, _orders(kind, rng, train[0].shape[1], tasks))
    sequence.notes.update(notes)
    return sequence


def _mnist_part(folder: Path, prefix: str) -> tuple[Tensor, Tensor] | None:
    arrays = []
    for what, offset in (("images-idx3", 16), ("labels-idx1", 8)):
        path = next((p for s in ("", ".gz") if (p := folder / f"{prefix}-{what}-ubyte{s}").is_file()), None)
        if path is None:
            return None
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = content[3] if len(content) > offset else 0
        if dimensions != int(what[-1]):
            raise UsageError(f"root: {str(path)!r} is not an idx file of MNIST's {what.partition('-')[0]}")
        arrays.append(np.frombuffer(content, dtype=np.uint8, offset=offset))
    labels = torch.tensor(arrays[1], dtype=torch.int64)
    return torch.tensor(arrays[0], dtype=torch.float32).view(len(labels), -1) / 255, labels


def local_benchmark(name: str, root: str | Path, **options: Any) -> CLScenario:
    """One of Avalanche's benchmarks, from local files alone: theirs would download what is not there.

    Args:
        name: ``SplitMNIST``, ``PermutedMNIST``, ``RotatedMNIST``, ``SplitFMNIST``, ``SplitCIFAR10``, ``SplitCIFAR100``.
        root: The folder that torchvision's data set is in (``MNIST/raw``, ``cifar-10-batches-py``, … under it).
        options: Avalanche's own (``n_experiences``, ``seed``, ``return_task_id``, …).

    Raises:
        UsageError: for another name, or if the files are not there.
    """
    import torchvision
    from avalanche.benchmarks import classic

    if name not in LOCAL:
        raise UsageError(f"benchmark: {name!r} is none that can be made from local files{did_you_mean(name, LOCAL)}")
    try:
        for train in (True, False):
            getattr(torchvision.datasets, LOCAL[name])(root=str(root), train=train, download=False)
    except RuntimeError:
        where = f"dataset_root {str(root)!r}: has not all files of torchvision's {LOCAL[name]}"
        raise UsageError(f"{where}; put them there, nothing is downloaded") from None
    return getattr(classic, name)(dataset_root=root, **options)
