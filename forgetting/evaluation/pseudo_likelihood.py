"""Pseudo-log-likelihoods of masked language models: Salazar et al. 2020 (arXiv 1910.14659)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forgetting.errors import UsageError
from forgetting.evaluation.likelihood import evaluating
from forgetting.tasks.encode import IGNORED, PRETRAINING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.evaluation.reader import Generations


class PseudoLikelihoods:
    """Σ over the continuation's tokens of log p(token | all others of context and continuation), each masked in turn.

    With an empty context this is the pseudo-log-likelihood of a sentence, by which minimal pairs are compared.

    Args:
        pairs: Contexts and continuations; white space between them belongs to the continuation.
        tokenizer: With classification, separator and mask tokens.
        first_token: The output that stands for token 0.
        batch_size: Sequences per forward pass, one per token of a continuation.
        max_length: Tokens per sequence; longer contexts lose their beginning.

    Raises:
        UsageError: if a continuation has no token, or more than ``max_length`` has room for.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        first_token: int,
        batch_size: int,
        max_length: int,
    ) -> None:
        from forgetting.families.encoder import framed, token_ids
        from forgetting.trainer import padded_batches

        contexts = [context.rstrip() for context, _ in pairs]
        wholes = token_ids(tokenizer, [context + continuation for context, continuation in pairs])
        kept = [len(ids) for ids in token_ids(tokenizer, contexts)]
        self.counts = np.array([len(w) - k for w, k in zip(wholes, kept, strict=True)], dtype=np.int64)
        features: list[dict[str, Any]] = []
        owners = []
        for index, (whole, count) in enumerate(zip(wholes, self.counts.tolist(), strict=True)):
            if not 0 < count <= max_length - 2:
                raise UsageError(
                    f"max_length {max_length}: continuation {pairs[index][1]!r} has {count} tokens; "
                    f"it needs 1 to {max_length - 2}"
                )
            ids = framed(tokenizer, whole[-(max_length - 2) :], max_length)
            for position in range(len(ids) - 1 - count, len(ids) - 1):
                masked = list(ids)
                masked[position] = int(tokenizer.mask_token_id)
                label = first_token + ids[position]
                features.append(
                    {
                        "input_ids": masked,
                        "positions": [position],
                        "labels": [IGNORED, label],
                        "head": -1,
                        "source": PRETRAINING,
                        "truncated": 0,
                    }
                )
                owners.append(index)
        order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]), reverse=True)
        self._owners = np.array([owners[i] for i in order], dtype=np.int64)
        self._batches = padded_batches([features[i] for i in order], tokenizer, batch_size)

    def score(self, model: PreTrainedModel) -> list[tuple[float, bool]]:
        """Return (sum in nats, whether each token is the most probable one in its place) of every pair."""
        from forgetting.families.scoring import predictions

        log_probs, greedy = [], []
        with evaluating(model):
            for batch in self._batches:
                logits, labels = predictions(model, batch)
                found = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
                log_probs.append(found.double().cpu())
                greedy.append((logits.argmax(1) == labels).cpu())
        sums, wrong = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        if self._batches:
            np.add.at(sums, self._owners, torch.cat(log_probs).numpy())
            np.add.at(wrong, self._owners, (~torch.cat(greedy)).numpy())
        return [(float(total), not misses) for total, misses in zip(sums, wrong, strict=True)]


class PseudoReader:
    """Encoders: continuations are scored by pseudo-log-likelihood; nothing is generated.

    Args:
        first_token: The output that stands for token 0, after the classes.
    """

    def __init__(self, first_token: int) -> None:
        self.first_token = first_token

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        groups: Sequence[Hashable],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
    ) -> PseudoLikelihoods:
        """See Reader."""
        return PseudoLikelihoods(
            pairs, tokenizer, first_token=self.first_token, batch_size=batch_size, max_length=max_length
        )

    def generations(self, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Generations:
        """Refuse."""
        raise UsageError("evaluation.suite: a task asks for generated text, and an encoder writes none; leave it out")
