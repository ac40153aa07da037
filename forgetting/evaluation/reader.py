"""How a family of models reads pairs of context and continuation: what scores are made of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from forgetting.errors import UsageError
from forgetting.evaluation.budget import BatchSize
from forgetting.evaluation.encoding import encode_pairs
from forgetting.evaluation.generation import PreparedGenerations
from forgetting.evaluation.likelihood import PreparedLikelihoods
from forgetting.evaluation.packing import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Likelihoods(Protocol):
    """Continuations, tokenised once; ``counts`` are their tokens."""

    counts: NDArray[np.int64]

    def score(self, model: PreTrainedModel) -> list[tuple[float, bool]]:
        """Return (log p of the continuation in nats, whether it is the greedy one) of every pair."""


class Generations(Protocol):
    """Prompts, tokenised once."""

    def generate(self, model: PreTrainedModel) -> list[str]:
        """Return a greedy continuation of every prompt."""


class Reader(Protocol):
    """Prepares pairs and prompts for one family of models."""

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        groups: Sequence[Hashable],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
    ) -> Likelihoods:
        """Prepare pairs; those of one group may share what they have in common."""

    def generations(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> Generations:
        """Prepare prompts."""


class CausalReader:
    """The context is read, and the continuation follows it: decoders."""

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        groups: Sequence[Hashable],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: BatchSize,
        max_length: int,
        families: Sequence[Hashable] = (),
    ) -> PreparedLikelihoods:
        """See Reader; pairs of one family (a task) may share a beginning too, which is then read once per model."""
        encoded = encode_pairs(tokenizer, pairs)
        whole = [len(context) + len(continuation) <= max_length + 1 for context, continuation in encoded]
        alike = [family if kept else None for family, kept in zip(families, whole, strict=True)] if families else ()
        return PreparedLikelihoods(truncate_pairs(encoded, max_length), groups, batch_size, alike)

    def generations(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: BatchSize,
        max_length: int,
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> PreparedGenerations:
        """See Reader."""
        return PreparedGenerations(
            prompts,
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            until=until,
        )


CAUSAL = CausalReader()


def truncate_pairs(pairs: Sequence[tuple[list[int], list[int]]], max_length: int) -> list[TokenSequence]:
    """Join contexts and continuations; what has more than ``max_length`` + 1 tokens loses its beginning.

    The last token is only predicted, never read: hence the + 1 (as in HFLM).

    Raises:
        UsageError: if a continuation alone is longer than ``max_length``.
    """
    for _, continuation in pairs:
        if len(continuation) > max_length:
            raise UsageError(f"max_length {max_length}: a continuation has {len(continuation)} tokens; raise it")
    return [
        TokenSequence((context + continuation)[-(max_length + 1) :], len(continuation))
        for context, continuation in pairs
    ]
