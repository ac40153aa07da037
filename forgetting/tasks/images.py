"""Tasks of images: npz files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forgetting.config import TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.files import own_path
from forgetting.tasks.task import Example, Image
from forgetting.tasks.text import RawSplits

MOST_CLASSES = 100_000
"""Labels count classes: a larger one is another kind of number."""


def load_images(path: str, where: str, classes: Sequence[str] | None = None) -> list[Example]:
    """Read an npz file: ``images``, uint8 (N, H, W) or (N, H, W, channels), and integer ``labels``, (N,).

    Args:
        path: The file; nothing in it is unpickled.
        where: For messages.
        classes: Names of the labels; their numbers where not given.

    Returns:
        An example per image, whose choices are the classes (where not given, those of the file).

    Raises:
        UsageError: if the file is missing, or holds something else.
    """
    file = own_path(path, where)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # of zip, zlib, numpy's header and what it asks of the memory
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{where}: {path!r} is not an npz file with images and labels ({problem})") from None
    fits = images.dtype == np.uint8 and images.ndim in (3, 4) and labels.shape == images.shape[:1] and len(images)
    fits = fits and images.size > 0
    if not fits or labels.dtype.kind not in "iu":
        raise UsageError(
            f"{where}: {path!r} has images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}; "
            "give uint8 (N, H, W) or (N, H, W, channels), and integers (N,)"
        )
    if int(labels.max()) >= MOST_CLASSES:
        raise UsageError(f"{where}: {path!r} has label {int(labels.max())}; give labels below {MOST_CLASSES}")
    names = [str(i) for i in range(int(labels.max()) + 1)] if classes is None else list(classes)
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise UsageError(f"{where}: {path!r} has label {wrong}, not one from 0 to {len(names) - 1}")
    choices = tuple(names) if classes is not None else tuple(names[i] for i in np.unique(labels))
    return [Example(Image(pixels), names[label], choices) for pixels, label in zip(images, labels, strict=True)]


def read_images(config: TaskConfig) -> RawSplits:
    """Read a task of npz files; ``labels`` (or ``choices``) names the classes.

    Raises:
        UsageError: for the first thing that cannot be used, naming the file.
    """
    classes = config.labels or config.choices
    splits = [
        None if path is None else load_images(path, f"task {config.name!r}, {split}", classes)
        for split, path in (("train", config.train), ("validation", config.validation), ("test", config.test))
    ]
    train, validation, test = splits
    assert train is not None
    return RawSplits(train, validation, test)
