"""Scoring a model on a suite, with every item's record; and the noise of scoring itself, by an A/A run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from forgetting.audit.items import Panel, measured
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.evaluation.suite import Suite
    from forgetting.models import LoadedModel


def measure(loaded: LoadedModel, suite: Suite, batch_size: int) -> Panel:
    """Score a model on a suite.

    Args:
        loaded: Left in the mode it was in.
        suite: Its capabilities become the panel's, in order.
        batch_size: Sequences per forward pass.

    Raises:
        UsageError: if a text has no finite probability: of such a model there is no perplexity.
    """
    suite.evaluate(loaded.model, loaded.tokenizer, batch_size=batch_size)
    samples = suite.samples()
    panel = {
        about.name: measured(
            about.name,
            samples[about.name],
            about.metric,
            chance=about.chance,
            higher_is_better=about.higher_is_better,
            version=about.version,
        )
        for about in suite.capabilities()
    }
    for capability in panel.values():
        for item in capability.items:
            if not math.isfinite(item.outcome):
                raise UsageError(
                    f"model {loaded.name!r}: has {capability.metric} = {item.outcome} on item {item.key[1]} of task "
                    f"{item.task!r}; it diverged, or its weights are damaged"
                )
    return panel


def other_batch_size(batch_size: int) -> int:
    """Of the A/A run: half as many sequences per pass, or two instead of one."""
    return batch_size // 2 if batch_size > 1 else 2
