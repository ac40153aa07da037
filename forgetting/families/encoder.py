"""Encoders: masked language models (BERT, ALBERT) with a classification head per task, domain or set of classes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from forgetting.errors import UsageError
from forgetting.families.base import Family
from forgetting.families.labels import Labels
from forgetting.tasks.encode import IGNORED, PRETRAINING, TASK, Feature
from forgetting.tasks.scenario import Scenario

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from forgetting.config import EvaluationConfig
    from forgetting.evaluation.feature_drift import FeatureDrift
    from forgetting.evaluation.suite import Suite
    from forgetting.families.scoring import HeadScorer
    from forgetting.models import LoadedModel
    from forgetting.tasks.pretraining import PretrainingText
    from forgetting.tasks.task import Example, Task

MASKED_SHARE = 0.15
"""Share of a text's tokens that are masked and predicted (Devlin et al. 2019, arXiv 1810.04805)."""


class Encoder(Family):
    """The prompt's first token is classified; what was pretrained is the prediction of masked tokens.

    Capabilities are lm-eval's tasks by pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659), drift is that of
    masked tokens.
    """

    scenario: ClassVar[Scenario | None] = "task"
    cannot_sample: ClassVar[str] = ", and model {} is an encoder, which writes none"

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """With heads."""
        from forgetting.families.encoder_model import EncoderModel

        self.labels = Labels(self.sequence, self.scenario_used)
        model = EncoderModel(loaded.model, self.labels.sizes).to(loaded.model.device)  # type: ignore[arg-type]
        return replace(loaded, model=model.eval())

    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Feature]:
        """Prompts and classes; what is too long loses its end."""
        features = []
        for ids, example in zip(token_ids(self.tokenizer, [e.prompt for e in examples]), examples, strict=True):
            cut = framed(self.tokenizer, ids, max_length)
            features.append(
                {
                    "input_ids": cut,
                    "positions": [0],
                    "labels": [IGNORED, self.labels.target(task.name, example.completion)],
                    "head": self.labels.head(task.name),
                    "source": TASK,
                    "truncated": int(len(ids) + 2 > len(cut)),
                }
            )
        return features

    def encode_pretraining(self, documents: Sequence[Any], max_length: int) -> list[Feature]:
        """Documents with masked tokens; the same ones, whenever a document is encoded."""
        return masked_features(self.tokenizer, documents, max_length, first_label=self.labels.outputs)

    def scorer(self, task: Task, batch_size: int, max_length: int) -> HeadScorer:
        """By the head's classes, among the item's choices."""
        from forgetting.families.scoring import HeadScorer

        features = self.encode(task, task.test, max_length)
        return HeadScorer(task, features, self.labels, self.tokenizer, batch_size)

    def capabilities(self, config: EvaluationConfig, pretraining: PretrainingText) -> Suite:
        """The suites, by pseudo-log-likelihood."""
        from forgetting.evaluation.pseudo_likelihood import PseudoReader
        from forgetting.families.decoder import text_suite

        return text_suite(
            config, reader=PseudoReader(self.labels.outputs), trust_remote_code=self.base.trust_remote_code
        )

    def drift(self, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> FeatureDrift:
        """Of masked tokens."""
        from forgetting.evaluation.feature_drift import FeatureDrift

        return FeatureDrift(
            self.base.model,
            self.tokenizer,
            pretraining.held_out,
            lambda documents: self.encode_pretraining([str(getattr(d, "prompt", d)) for d in documents], max_length),
            max_tokens=config.drift_tokens,
            batch_size=config.batch_size,
            token_of=lambda label: label - self.labels.outputs,
        )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Encode texts without special tokens."""
    documents = list(texts)
    if not documents:
        return []
    return tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def framed(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    """Put ids between the classification and the separator token; at most ``max_length`` tokens in all.

    Raises:
        UsageError: if the tokenizer lacks one of them.
    """
    for name in ("cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise UsageError(f"tokenizer: has no {name}; an encoder needs one")
    return [int(tokenizer.cls_token_id), *ids[: max_length - 2], int(tokenizer.sep_token_id)]


def masked_features(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str],
    max_length: int,
    *,
    first_label: int,
    share: float = MASKED_SHARE,
) -> list[Feature]:
    """Encode documents with masked tokens, chosen by each document's own text.

    Args:
        tokenizer: With classification, separator and mask tokens.
        documents: Texts; one without a token gives no feature.
        max_length: Most tokens of a feature.
        first_label: The label of token 0: tokens stand after the classes among the outputs.
        share: Of tokens masked; at least one is.
    """
    texts = list(documents)
    features = []
    for text, ids in zip(texts, token_ids(tokenizer, texts), strict=True):
        if not ids:
            continue
        framed_ids = framed(tokenizer, ids, max_length)
        inner = range(1, len(framed_ids) - 1)
        chosen = sorted(random.Random(text).sample(inner, max(1, round(share * len(inner)))))
        masked = list(framed_ids)
        for position in chosen:
            masked[position] = int(tokenizer.mask_token_id)
        features.append(
            {
                "input_ids": masked,
                "positions": chosen,
                "labels": [IGNORED, *(first_label + framed_ids[position] for position in chosen)],
                "head": -1,
                "source": PRETRAINING,
                "truncated": int(len(ids) > len(inner)),
            }
        )
    return features
