"""Drift token by token: how the KL divergence is distributed, and bits per byte where tokenizers differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.analysis.stats import Interval
    from forgetting.evaluation.drift import DriftMeter, TokenDrift
    from forgetting.tasks.task import Example

GENERAL, SAMPLES = "general text", "the base's own samples"
"""Names of texts."""


@dataclass(frozen=True, slots=True)
class TextKL:
    """KL(p ‖ q) at a text's N predicted tokens, p the base model's distribution and q the tuned one's, nats.

    Attributes:
        tokens: N.
        mean, median, p99, p999, maximum: Of the KL over tokens; a quantile beyond which less than one token is
            expected (p99 of fewer than 100, p999 of fewer than 1,000) is NaN. Quantiles lie linearly between tokens.
        same_top: Share of tokens before which both models find the same next token the most probable.
        rms_delta_p: √(mean (q(x) − p(x))²) over the tokens x that stand there, in probability. With :attr:`same_top`
            it is what llama.cpp's perplexity tool reports of a quantised model.
        ce_base, ce_tuned: Cross-entropy, nats per token.
        bits_per_byte_base, bits_per_byte_tuned: The same over the UTF-8 bytes of these tokens.
    """

    tokens: int
    mean: float
    median: float
    p99: float
    p999: float
    maximum: float
    same_top: float
    rms_delta_p: float
    ce_base: float
    ce_tuned: float
    bits_per_byte_base: float
    bits_per_byte_tuned: float


def text_kl(found: TokenDrift) -> TextKL:
    """Summarise the tokens of one text.

    Raises:
        ValueError: if there is no token.
    """
    n = found.kl.size
    if not n:
        raise ValueError("found: has no token; give a text with two tokens or more")

    def quantile(q: float) -> float:
        return float(np.quantile(found.kl, q)) if n * (1 - q) >= 1 - 1e-9 else math.nan

    ce = [-float(log_probs.mean()) for log_probs in (found.log_p, found.log_q)]
    bits = [-float(log_probs.sum()) / math.log(2) / found.bytes for log_probs in (found.log_p, found.log_q)]
    return TextKL(
        tokens=n,
        mean=float(found.kl.mean()),
        median=float(np.median(found.kl)),
        p99=quantile(0.99),
        p999=quantile(0.999),
        maximum=float(found.kl.max()),
        same_top=float(found.same_top.mean()),
        rms_delta_p=float(np.sqrt(np.mean((np.exp(found.log_q) - np.exp(found.log_p)) ** 2))),
        ce_base=ce[0],
        ce_tuned=ce[1],
        bits_per_byte_base=bits[0],
        bits_per_byte_tuned=bits[1],
    )


def audit_drift(meter: DriftMeter, model: PreTrainedModel, own: Sequence[Example] = ()) -> dict[str, TextKL]:
    """Measure the drift of a tuned model on a meter's texts and on its own data.

    Args:
        meter: Of the base model, on texts such as :data:`GENERAL` and :data:`SAMPLES` (:func:`audit_meter`).
        model: The tuned one; of the base's tokenizer.
        own: Examples of the own task.

    Returns:
        By text; ``task_inputs`` and ``task_answers`` are the own data's (:meth:`DriftMeter.measure`).
    """
    return {name: text_kl(found) for name, found in meter.tokens(model, own).items()}


def audit_meter(
    base_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    general: Mapping[str, Sequence[str]],
    *,
    samples: int,
    max_length: int,
    max_tokens: int,
    batch_size: int,
    seed: int = 0,
) -> DriftMeter:
    """Return a meter of general text and of documents that are sampled from the base model.

    On its own samples KL(base ‖ tuned) is where the base model itself would notice: in expectation it is the KL of the
    two models over whole documents, per token. They are drawn at temperature 1, and none twice.

    Args:
        base_model: Left as it is.
        tokenizer: Both models'.
        general: Documents by text name; may be empty.
        samples: Documents that are sampled; 0 for none.
        max_length: Tokens of a window, and of a sample.
        max_tokens: Most predicted tokens per text.
        batch_size: Windows per forward pass.
        seed: Of the sampling.

    Raises:
        UsageError: if a text has no document of two tokens, the model's samples are too alike, or there is no text.
    """
    from forgetting.evaluation.drift import DriftMeter
    from forgetting.tasks.pretraining import sample_documents

    texts = dict(general)
    if samples:
        texts[SAMPLES] = sample_documents(
            base_model, tokenizer, samples, max_length=max_length, seed=seed, asked_by="the base's own samples"
        )
    if not texts:
        raise UsageError("drift: no general text and no samples are given; give one of the two")
    return DriftMeter(base_model, tokenizer, texts, max_length=max_length, max_tokens=max_tokens, batch_size=batch_size)


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str] = ()) -> bool:
    """Whether two tokenizers have one vocabulary and split these texts alike: only then is there a KL per token."""
    from forgetting.evaluation.encoding import encode_texts

    return one.get_vocab() == other.get_vocab() and encode_texts(one, texts) == encode_texts(other, texts)


@dataclass(frozen=True, slots=True)
class BitsPerByte:
    """Two models on the same documents, each with its own tokenizer.

    Attributes:
        base, tuned: −log₂ p of all documents over their UTF-8 bytes.
        difference: tuned − base, an interval over documents, paired (their bytes taken as given).
        bytes: Of all documents.
    """

    base: float
    tuned: float
    difference: Interval
    bytes: int


def bits_per_byte(
    base: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    tuned: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    documents: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 64,
    level: float = 0.95,
) -> BitsPerByte:
    """Compare models of whatever tokenizers: every byte of every document counts, the first token's too.

    Log-probabilities are lm-eval's ``loglikelihood_rolling``: the first token follows the BOS (else EOS) token, and
    longer documents are read in windows.

    Args:
        base: Model and its tokenizer.
        tuned: The same of the other.
        documents: Texts, none empty.
        max_length: Tokens of a window.
        batch_size: Windows per forward pass.
        level: Of the interval.

    Raises:
        UsageError: if there is no document, one is empty, or a tokenizer has neither BOS nor EOS.
    """
    from lm_eval.api.instance import Instance

    from forgetting.analysis.stats import paired_difference
    from forgetting.evaluation.lm import Prepared

    sizes = np.array([len(document.encode()) for document in documents], dtype=np.float64)
    if not sizes.size or not sizes.all():
        raise UsageError(f"documents: {len(documents)} are given, {int((sizes == 0).sum())} of them empty; give text")
    requests = [Instance("loglikelihood_rolling", {}, (document,), index) for index, document in enumerate(documents)]
    bits = []
    for model, tokenizer in (base, tuned):
        prepared = Prepared(requests, tokenizer, batch_size=batch_size, max_length=max_length)
        log_probs = np.array(prepared.score(model), dtype=np.float64)
        bits.append(-log_probs / math.log(2) / sizes.mean())  # a document's share: their mean is bits per byte
    difference = paired_difference(bits[0], bits[1], "items", level)
    return BitsPerByte(float(bits[0].mean()), float(bits[1].mean()), difference, int(sizes.sum()))
