"""Is it gone, or out of reach? A copy of a tuned model relearns for a few steps, and is scored as it does."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeVar

from forgetting.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.tasks.encode import Feature

T = TypeVar("T")

STEPS = (0, 1, 2, 5, 10, 20)


def relearning_curve(
    model: PreTrainedModel,
    features: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
    score: Callable[[PreTrainedModel], T],
    *,
    learning_rate: float,
    steps: Collection[int] = STEPS,
    batch_size: int = 8,
    seed: int = 0,
) -> list[tuple[int, T]]:
    """Fine-tune a copy of a model for a few steps, and score it after some of them.

    What a few steps bring back was not erased (Zheng et al. 2025, arXiv 2501.13453). Two controls belong to it: the
    items that are scored must not be among the features, and the same curve of the base model tells what the steps
    teach a model that has lost nothing. Trained is what requires a gradient, by ``ContinualTrainer`` without a
    mitigation: AdamW at a constant rate, so that the model after k steps does not depend on how many follow. As in
    every training, the global random generators are seeded.

    Args:
        model: The tuned model; it is left as it is.
        features: A small sample of pretraining-like text, or of the capability's own examples
            (``forgetting.tasks.encode``); drawn in a random order of the seed's, again and again.
        tokenizer: The model's.
        score: See :class:`forgetting.evaluation.trace.ScoreAtSteps`; for :func:`forgetting.analysis.recovery.
            recovery_table` it returns scores by capability, such as ``Suite.evaluate`` does.
        learning_rate: Constant.
        steps: After which to score; 0 is the tuned model.
        batch_size: Features per step.
        seed: Of the order of the features.

    Returns:
        (k, score) for each of ``steps``, increasing.

    Raises:
        ValueError: if there is no feature, no step after 0, or a step is negative.
        RunFailed: at the first loss that is not finite.
    """
    from forgetting.evaluation.trace import ScoreAtSteps
    from forgetting.mitigations import build_mitigation
    from forgetting.tasks.encode import ExampleDataset
    from forgetting.trainer import ContinualTrainer, training_arguments

    if not features:
        raise ValueError("features: there is none; give a small sample to relearn from")
    if not steps or min(steps) < 0 or max(steps) < 1:
        raise ValueError(f"steps: {list(steps)}; give steps from 0 on, at least one above 0")
    looks = ScoreAtSteps(score, steps)
    config = TrainingConfig(
        learning_rate=learning_rate, steps=max(steps), batch_size=batch_size, scheduler="constant", warmup=0
    )
    with tempfile.TemporaryDirectory() as scratch:
        ContinualTrainer(
            copy.deepcopy(model),
            ExampleDataset(features),
            build_mitigation("naive"),
            training_arguments(config, seed=seed, output=scratch),
            tokenizer,
            callbacks=[looks],
        ).train()
    return looks.points
