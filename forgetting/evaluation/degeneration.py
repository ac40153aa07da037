"""Degeneration of what a model writes: empty, endless, repetitive or all alike; base against tuned, greedily."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forgetting.analysis.stats import paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.generation import Continuation


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all sequences together, over all their n-grams (after Li et al. 2016, arXiv 1510.03055).

    Li et al. divide by the number of tokens: for n = 1 that is the same, for n > 1 it is less, and depends on how
    many short sequences there are. Either falls as more is written: compare equal numbers of prompts, and lengths.

    Args:
        sequences: Tokens, or words.
        n: At least 1; an n-gram lies within one sequence.

    Returns:
        In (0, 1]; NaN where no sequence has n tokens.

    Raises:
        ValueError: if n is less than 1.
    """
    grams = [gram for sequence in sequences for gram in _ngrams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition_n(sequence: Sequence[Hashable], n: int = 4) -> float:
    """1 − (different n-grams) / (n-grams) of one continuation: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319).

    Args:
        sequence: Tokens, or words.
        n: At least 1.

    Returns:
        0 where no n-gram occurs twice; NaN where the sequence has fewer than n tokens.

    Raises:
        ValueError: if n is less than 1.
    """
    return 1 - distinct_n([sequence], n)


def _ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"n: {n} is less than 1")
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all others as references (Zhu et al. 2018, Texygen, arXiv 1802.01886).

    Higher is less diverse; 1 where each text occurs twice. BLEU is sacrebleu's of one sentence: 13a tokens,
    exponential smoothing, of shorter texts the n-grams that there are. Texts without a character are left out: their
    share is a measure of its own, and as hypotheses of BLEU 0 they would look diverse. Takes time of order N².

    Args:
        texts: N texts.

    Returns:
        In [0, 1]; NaN where fewer than two texts are left.
    """
    from sacrebleu.metrics.bleu import BLEU

    written = [text for text in texts if text.strip()]
    if len(written) < 2:
        return math.nan
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*written[:i], *written[i + 1 :]]).score for i, text in enumerate(written)]
    return float(np.mean(scores)) / 100


PER_PROMPT: dict[str, Callable[[Continuation], float]] = {
    "length": lambda written: float(len(written.tokens)),
    "empty": lambda written: float(not written.text.strip()),
    "unfinished": lambda written: float(not written.finished),
    "repetition_4": lambda written: repetition_n(written.tokens, 4),
}
"""Measures with a value per prompt: tokens, whether there is no text, whether no end token came, and seq-rep-4."""

TOGETHER: dict[str, Callable[[Sequence[Continuation]], float]] = {
    "distinct_1": lambda all_written: distinct_n([written.tokens for written in all_written], 1),
    "distinct_2": lambda all_written: distinct_n([written.tokens for written in all_written], 2),
    "self_bleu": lambda all_written: self_bleu([written.text for written in all_written]),
}
"""Measures of all continuations together."""


@dataclass(frozen=True)
class OutputComparison:
    """What two models wrote after the same prompts, in their order, and how it differs.

    Attributes:
        base, tuned: The continuations.
        table: See :func:`compare_continuations`.
    """

    base: list[Continuation]
    tuned: list[Continuation]
    table: pd.DataFrame


def compare_outputs(
    base_model: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    max_length: int,
    batch_size: int = 32,
) -> OutputComparison:
    """Let two decoders continue the same prompts greedily, and compare what they write.

    Args:
        base_model: Left in the mode it was in.
        model: The same.
        tokenizer: Both models'.
        prompts: Texts.
        max_new_tokens: Most tokens of a continuation; one without an end token by then is unfinished.
        max_length: Most tokens of prompt and continuation together; a longer prompt loses its beginning.
        batch_size: Prompts per batch.

    Raises:
        ValueError: if there is no prompt, or a model is no decoder.
        UsageError: if ``max_new_tokens`` leaves no room for a prompt.
    """
    from forgetting.evaluation.generation import PreparedGenerations

    for each in (base_model, model):
        if not each.can_generate() or each.config.is_encoder_decoder:
            raise ValueError(f"model {type(each).__name__}: is no decoder, which alone continues a prompt")
    prepared = PreparedGenerations(
        prompts, tokenizer, batch_size=batch_size, max_length=max_length, max_new_tokens=max_new_tokens
    )
    base, tuned = prepared.continuations(base_model), prepared.continuations(model)
    return OutputComparison(base, tuned, compare_continuations(base, tuned))


def compare_continuations(
    base: Sequence[Continuation], tuned: Sequence[Continuation], level: float = 0.95
) -> pd.DataFrame:
    """Compare continuations of the same prompts.

    Args:
        base: A continuation per prompt.
        tuned: The same prompts', in the same order.
        level: Confidence level.

    Returns:
        A row per measure of :data:`PER_PROMPT` (the mean over prompts that have a value under both models, ``n`` of
        them) and of :data:`TOGETHER` (of all n prompts): ``measure``, ``base``, ``tuned``, ``difference`` tuned −
        base, and for means the limits ``low`` and ``high`` of the difference, an interval over prompts
        (:func:`forgetting.analysis.stats.paired_difference`); NaN where there is none.

    Raises:
        ValueError: if there is no prompt, or the numbers differ.
    """
    import pandas as pd

    if not base or len(base) != len(tuned):
        raise ValueError(f"base and tuned: have {len(base)} and {len(tuned)} continuations; need one per prompt each")
    rows = []
    for measure, value in PER_PROMPT.items():
        pairs = np.array([(value(first), value(second)) for first, second in zip(base, tuned, strict=True)])
        pairs = pairs[~np.isnan(pairs).any(1)]
        row = {"measure": measure, "n": len(pairs), **dict.fromkeys(("base", "tuned", "difference"), math.nan)}
        row |= {"low": math.nan, "high": math.nan}
        if len(pairs):
            interval = paired_difference(pairs[:, 0], pairs[:, 1], "items", level)
            row |= {"base": pairs[:, 0].mean(), "tuned": pairs[:, 1].mean(), "difference": interval.mean}
            row |= {"low": interval.low, "high": interval.high}
        rows.append(row)
    for measure, together in TOGETHER.items():
        first, second = together(base), together(tuned)
        row = {"measure": measure, "n": len(base), "base": first, "tuned": second, "difference": second - first}
        rows.append({**row, "low": math.nan, "high": math.nan})
    return pd.DataFrame(rows)
