"""Scores along a training: a callback that looks at the model at chosen steps, whatever the mitigation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forgetting.evaluation.likelihood import evaluating

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.suite import Suite
    from forgetting.tasks.encode import Feature

T = TypeVar("T")


class ScoreAtSteps(TrainerCallback, Generic[T]):
    """Scores the model of one training at chosen steps, and changes nothing in it.

    For a run's task, give it to :func:`forgetting.run.train_task`.

    Args:
        score: Scores a model; it is called in eval mode, without gradients, and must not draw from torch's global
            generators (greedy generation and likelihoods do not).
        steps: Optimizer steps after which to score; 0 is the model as the training begins. ``range(0, N + 1, k)``:
            every k steps.

    Attributes:
        points: (step, what ``score`` returned), in the order of the steps.
    """

    def __init__(self, score: Callable[[PreTrainedModel], T], steps: Collection[int]) -> None:
        self.score, self.steps = score, steps
        self.points: list[tuple[int, T]] = []

    def _look(self, state: TrainerState, model: PreTrainedModel) -> None:
        if state.global_step in self.steps:
            with evaluating(model):
                self.points.append((state.global_step, self.score(model)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look before the first step."""
        self._look(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look after a step, and what the mitigation did after it."""
        self._look(state, kwargs["model"])


def cheap_scores(
    features: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite | None = None,
    batch_size: int = 64,
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Return what scores a model cheaply enough for every few steps.

    Args:
        features: Of a small, fixed held-out text (``family.encode_pretraining``, ``RunContext.encode_text``).
        tokenizer: The model's.
        suite: Few capabilities of few items (``load_suite(["micro_facts"], limit=20)``).
        batch_size: Sequences per forward pass.

    Returns:
        A function of a model; it gives ``ce``, the mean loss of what the features predict (nats), and each
        capability's score by its name.

    Raises:
        ValueError: if the features predict nothing.
    """
    from forgetting.tasks.memory import predicts
    from forgetting.trainer import mean_loss, padded_batches

    if not any(predicts(feature) for feature in features):
        raise ValueError(f"features: the {len(features)} predict nothing; give features of running text")
    batches = padded_batches(list(features), tokenizer, batch_size)

    def score(model: PreTrainedModel) -> dict[str, float]:
        scores = {"ce": mean_loss(model, batches)}
        if suite is not None:
            scores |= {name: found.value for name, found in suite.evaluate(model, tokenizer, batch_size).items()}
        return scores

    return score


def trace_table(points: Sequence[tuple[int, Mapping[str, float]]]) -> pd.DataFrame:
    """Tabulate ``ScoreAtSteps.points`` of :func:`cheap_scores`: a row per look, ``step`` and a column per score."""
    import pandas as pd

    return pd.DataFrame([{"step": step, **scores} for step, scores in points])
