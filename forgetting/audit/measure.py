"""Scoring a model on a suite, with every item's record; and the noise of scoring itself, by an A/A run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from forgetting.audit.items import Panel, measured
from forgetting.errors import UsageError
from forgetting.evaluation.budget import BatchSize, Slots

if TYPE_CHECKING:
    from forgetting.audit.score_cache import ScoreCache
    from forgetting.evaluation.suite import Suite
    from forgetting.models import LoadedModel


def measure(loaded: LoadedModel, suite: Suite, batch_size: BatchSize, cache: ScoreCache | None = None) -> Panel:
    """Score a model on a suite.

    Args:
        loaded: Left in the mode it was in.
        suite: Its capabilities become the panel's, in order.
        batch_size: Sequences per forward pass, or slots.
        cache: Where responses are kept, and may be already.

    Raises:
        UsageError: if a text has no finite probability: of such a model there is no perplexity.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    if cache is None:
        responses = suite.responses(model, tokenizer, batch_size)
    else:
        from forgetting.audit.score_cache import score_key

        key = score_key(model, tokenizer, suite.requests, batch_size)
        kinds = [request.request_type for request in suite.requests]
        responses = cache.responses(key, kinds, lambda: suite.responses(model, tokenizer, batch_size))
    suite.score(responses)
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


def other_batch_size(batch_size: BatchSize) -> BatchSize:
    """Of the A/A run: half as many sequences (or slots) per pass, or two instead of one."""
    if isinstance(batch_size, Slots):
        return Slots(batch_size.n // 2 if batch_size.n > 1 else 2)
    return batch_size // 2 if batch_size > 1 else 2
