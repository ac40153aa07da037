"""A task: one data set with train, validation and test splits, an example format and a score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric = Literal["accuracy", "exact_match", "token_f1", "rouge_l", "perplexity"]
METRICS: tuple[str, ...] = get_args(Metric)


class Image(str):
    """An image where other examples have a prompt's text: as text, it is a digest of its pixels.

    So images are equal where their pixels are, and whatever identifies an example by its text (duplicates between
    splits, the digest of a run's data) holds for images too.

    Attributes:
        pixels: uint8, (H, W, channels).
    """

    __slots__ = ("pixels",)
    pixels: NDArray

    def __new__(cls, pixels: NDArray) -> Image:
        """Make an image of pixels, (H, W) or (H, W, channels), uint8."""
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.dtype != "uint8":
            raise ValueError(f"image: pixels are {pixels.dtype} of shape {pixels.shape}; give uint8, (H, W, channels)")
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        image = super().__new__(cls, f"image {digest[:32]}")
        image.pixels = pixels
        return image

    def __getnewargs__(self) -> tuple[NDArray]:  # type: ignore[override]  # str's gives its text
        return (self.pixels,)


@dataclass(frozen=True, slots=True)
class Example:
    """One item: the model reads ``prompt`` and is trained on, or scored by, ``completion``.

    The text that the model sees is ``prompt + completion``: the separator (a space, a newline) belongs to the
    start of ``completion``, as in lm-eval's ``target_delimiter + target``.

    Attributes:
        prompt: The context, a text or an ``Image``; its tokens never carry loss.
        completion: The target.
        choices: All answers that a multiple-choice item allows, the completion among them; ``None`` where the
            task is not one of choice.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.choices is not None and self.completion not in self.choices:
            raise UsageError(
                f"choices: the completion {self.completion!r} is not among the choices {list(self.choices)!r}"
            )


@dataclass(frozen=True)
class Task:
    """One data set of a sequence.

    Attributes:
        name: Unique within its sequence.
        train, validation, test: The splits; none is empty. Validation is never cut from test. What is trained on may
            be larger than memory, and then is read from a file (``forgetting.tasks.rows``).
        metric: How the test split is scored: ``accuracy`` (log-likelihood over ``choices``), ``exact_match``,
            ``token_f1``, ``rouge_l`` (these three on greedy generations), or ``perplexity`` (of the
            completion; R holds -ln(perplexity), so that higher is better in every column of R).
        chance: The score of guessing (0 where guessing earns nothing).
        max_new_tokens: Length limit of greedy generations.
        notes: What was found while loading, to be reported (duplicates between train and test, items cut, ...).

    Raises:
        UsageError: if a split is empty, the metric unknown, or ``accuracy`` is asked of items without choices.
    """

    name: str
    train: Items[Example]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: Metric
    chance: float = 0.0
    max_new_tokens: int = 32
    notes: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"task {self.name!r}: metric {self.metric!r} is not one of {', '.join(METRICS)}")
        for split in ("train", "validation", "test"):
            examples = getattr(self, split)
            if not examples:
                raise UsageError(f"task {self.name!r}: the {split} split is empty; it needs at least one example")
            if self.metric == "accuracy" and any(e.choices is None for e in examples):
                raise UsageError(
                    f"task {self.name!r}: metric 'accuracy' needs 'choices' in every {split} example; "
                    "give them, or use exact_match, token_f1, rouge_l or perplexity"
                )


@dataclass(frozen=True)
class Sequence:
    """Tasks in the order in which they are learned.

    Raises:
        UsageError: if there is no task, or a task's name occurs twice.
    """

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError(f"sequence {self.name!r}: has no tasks; it needs at least one")
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UsageError(f"sequence {self.name!r}: task {repeated[0]!r} occurs twice; each task once")

    def __len__(self) -> int:
        return len(self.tasks)
