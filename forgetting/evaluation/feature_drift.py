"""Drift of models that predict in their family's way: what training features ask for, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from forgetting.errors import UsageError
from forgetting.evaluation.likelihood import evaluating
from forgetting.results import TextDrift

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.tasks.encode import Feature
    from forgetting.tasks.task import Example


class FeatureDrift:
    """Cross-entropy of a model, and its KL divergences from the base model, at what features predict.

    Args:
        base_model: The reference; it is left in the mode it is in.
        tokenizer: Both models'.
        texts: Documents by text name.
        encode: Documents (or a task's examples, as documents without answers) to features.
        max_tokens: Features are taken until they predict this many labels.
        batch_size: Features per forward pass.
        token_of: The token that a label stands for; ``None`` where labels are no text (``bpb`` is then not a number).

    Raises:
        UsageError: if a text gives no feature.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        tokenizer: Any,
        texts: Mapping[str, Sequence[Any]],
        encode: Callable[[Sequence[Any]], list[Feature]],
        *,
        max_tokens: int,
        batch_size: int,
        token_of: Callable[[int], int] | None,
    ) -> None:
        self.base, self.tokenizer, self.encode = base_model, tokenizer, encode
        self.max_tokens, self.batch_size, self.token_of = max_tokens, batch_size, token_of
        self._texts = {name: self._prepare(documents) for name, documents in texts.items()}
        for name, (batches, _) in self._texts.items():
            if not batches:
                raise UsageError(f"held-out text {name!r}: has no document that predicts anything; give running text")

    def measure(self, model: PreTrainedModel, task: Sequence[Example] = ()) -> dict[str, TextDrift]:
        """Measure a model; per predicted label, in nats, as ``DriftMeter`` does per token.

        Args:
            model: Left in the mode it was in. For the base model itself both KLs are exactly 0.
            task: Examples whose prompts are measured like documents, as ``task_inputs``; left out where labels are no
                text.
        """
        texts = dict(self._texts)
        if task and self.token_of is not None:
            texts["task_inputs"] = self._prepare(task)
        with evaluating(self.base), evaluating(model):
            return {name: self._measure(model, *prepared) for name, prepared in texts.items() if prepared[0]}

    def _prepare(self, documents: Sequence[Any]) -> tuple[list[dict[str, torch.Tensor]], float]:
        """Batches, and the UTF-8 bytes of what they predict."""
        from forgetting.trainer import padded_batches

        kept: list[Feature] = []
        predicted = 0
        for feature in self.encode(documents):
            if predicted >= self.max_tokens:
                break
            kept.append(feature)
            predicted += len(feature["labels"]) - 1
        if self.token_of is None:
            return padded_batches(kept, self.tokenizer, self.batch_size), math.nan
        tokens = [self.token_of(label) for feature in kept for label in feature["labels"][1:]]
        text = "".join(self.tokenizer.batch_decode([[token] for token in tokens], skip_special_tokens=True))
        return padded_batches(kept, self.tokenizer, self.batch_size), max(len(text.encode()), 1)

    def _measure(self, model: PreTrainedModel, batches: list[dict[str, torch.Tensor]], size: float) -> TextDrift:
        from forgetting.families.scoring import predictions

        sums = torch.zeros(4, dtype=torch.float64)  # ce, KL(base ‖ model), KL(model ‖ base), total variation
        count = 0
        for batch in batches:
            logits, labels = predictions(model, batch)
            log_q = logits.log_softmax(-1)
            count += len(labels)
            sums[0] -= log_q.gather(1, labels[:, None]).sum(dtype=torch.float64).cpu()
            if model is not self.base:
                log_p = predictions(self.base, batch)[0].log_softmax(-1)
                difference = log_p - log_q
                p, q = log_p.exp(), log_q.exp()
                sums[1] += (p * difference).sum(dtype=torch.float64).cpu()
                sums[2] -= (q * difference).sum(dtype=torch.float64).cpu()
                sums[3] += (p - q).abs().sum(dtype=torch.float64).cpu() / 2
        ce, kl_forward, kl_reverse, total_variation = (sums / count).tolist()
        bpb = float(sums[0]) / math.log(2) / size
        return TextDrift(
            ce=ce,
            bpb=bpb,
            kl_forward=kl_forward,
            kl_reverse=kl_reverse,
            total_variation=total_variation,
            tokens=count,
        )
