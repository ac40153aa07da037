"""Scoring a model on a suite, with every item's record; and the noise of scoring itself, by an A/A run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgetting.audit.items import Panel, measured

if TYPE_CHECKING:
    from forgetting.evaluation.suite import Suite
    from forgetting.models import LoadedModel


def measure(loaded: LoadedModel, suite: Suite, batch_size: int) -> Panel:
    """Score a model on a suite.

    Args:
        loaded: Left in the mode it was in.
        suite: Its capabilities become the panel's, in order.
        batch_size: Sequences per forward pass.
    """
    suite.evaluate(loaded.model, loaded.tokenizer, batch_size=batch_size)
    samples = suite.samples()
    return {
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


def other_batch_size(batch_size: int) -> int:
    """Of the A/A run: half as many sequences per pass, or two instead of one."""
    return batch_size // 2 if batch_size > 1 else 2
