"""The embedded images: scikit-learn's digits, of which four are pretrained and the others learned.

1,797 images of 8×8 pixels (UCI, Optical Recognition of Handwritten Digits). A quarter of each digit's is for testing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forgetting.errors import UsageError, did_you_mean
from forgetting.tasks.task import Example, Image, Sequence, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.families.vision import HeldOutImages
    from forgetting.tasks.encode import Feature

PRETRAINED = ("0", "1", "2", "3")
Transform = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _permuted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    order = np.random.default_rng(0).permutation(64)
    return pixels.reshape(-1)[order].reshape(8, 8)


def _rotated(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(pixels))


def _inverted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return 255 - pixels


SEQUENCES: dict[str, dict[str, tuple[tuple[str, ...], Transform]]] = {
    "digits-split": {
        "4 or 5": (("4", "5"), _same),
        "6 or 7": (("6", "7"), _same),
        "8 or 9": (("8", "9"), _same),
    },
    "digits-transformed": {
        "rotated": (PRETRAINED, _rotated),
        "inverted": (PRETRAINED, _inverted),
        "permuted": (PRETRAINED, _permuted),
    },
}
"""Sequence to task to (classes, what is done to the images): new classes; the pretrained classes, seen otherwise."""


@cache
def _digits() -> dict[str, tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]]:
    """Digit to (training, test) images."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    found = {}
    for digit in range(10):
        own = list(images[data.target == digit])
        random.Random(f"digit-{digit}").shuffle(own)
        quarter = len(own) // 4
        found[str(digit)] = (own[quarter:], own[:quarter])
    return found


def _examples(classes: tuple[str, ...], transform: Transform, part: int) -> list[Example]:
    found = [Example(Image(transform(p)), digit, classes) for digit in classes for p in _digits()[digit][part]]
    random.Random(f"digits-{''.join(classes)}-{part}").shuffle(found)
    return found


def pretraining_images() -> tuple[list[Example], list[Example]]:
    """Training and held-out images of the pretrained digits."""
    return _examples(PRETRAINED, _same, 0), _examples(PRETRAINED, _same, 1)


def load_digits_sequence(
    name: str,
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Sequence:
    """Return a sequence of digits.

    Args:
        name: ``digits-split`` or ``digits-transformed``.
        train_size: Training examples kept of each task; all where not given.
        validation_size: Validation examples; a tenth of the training images where not given.
        test_size: Test examples; all where not given.
        seed: Which examples are kept and which are for validation.

    Raises:
        UsageError: if the name is unknown, or a size greater than a task's images.
    """
    if name not in SEQUENCES:
        raise UsageError(f"sequence: {name!r} is not of digits{did_you_mean(name, SEQUENCES)}")
    tasks = []
    for task, (classes, transform) in SEQUENCES[name].items():
        train, test = (_examples(classes, transform, part) for part in (0, 1))
        random.Random(f"{name}-{task}-{seed}").shuffle(train)
        cut = validation_size or len(train) // 10
        wanted = train_size or len(train) - cut
        if cut + wanted > len(train) or (test_size or 1) > len(test):
            raise UsageError(
                f"sequence {name!r}: task {task!r} has {len(train)} images for training and validation, and "
                f"{len(test)} for testing; ask for fewer"
            )
        tasks.append(
            Task(
                name=task,
                train=tuple(train[cut : cut + wanted]),
                validation=tuple(train[:cut]),
                test=tuple(test[:test_size]),
                metric="accuracy",
                chance=1 / len(classes),
            )
        )
    return Sequence(name, tuple(tasks))


def vision_model() -> tuple[PreTrainedModel, Any]:
    """A small ViT with random weights, and its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(PRETRAINED)),
        label2id={name: i for i, name in enumerate(PRETRAINED)},
    )
    processor = ViTImageProcessor(do_resize=False, image_mean=[0.5], image_std=[0.5])
    return ViTForImageClassification(config), processor


def pretraining_features(processor: Any, seed: int) -> Iterator[Feature]:
    """Features of the pretrained digits without end, in a new order at every pass."""
    from forgetting.families.vision import own_features

    model, _ = vision_model()
    features = own_features(processor, model, pretraining_images()[0])
    rng = random.Random(f"digits-pretraining-{seed}")
    while True:
        rng.shuffle(features)
        yield from features


def held_out_digits(processor: Any) -> HeldOutImages:
    """The capability of the embedded image classifier."""
    from forgetting.families.vision import HeldOutImages, own_features

    model, _ = vision_model()
    return HeldOutImages({"pretraining": own_features(processor, model, pretraining_images()[1])}, PRETRAINED)
