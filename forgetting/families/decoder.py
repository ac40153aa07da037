"""Decoders: causal language models (GPT-2, Llama, Qwen)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.families.base import Family
from forgetting.tasks.encode import Feature, encode_examples, encode_texts

if TYPE_CHECKING:
    from forgetting.config import EvaluationConfig
    from forgetting.evaluation.drift import DriftMeter
    from forgetting.evaluation.scores import TaskScorer
    from forgetting.evaluation.suite import Suite
    from forgetting.models import LoadedModel
    from forgetting.tasks.pretraining import PretrainingText
    from forgetting.tasks.task import Example, Task


class Decoder(Family):
    """The prompt is read, the completion predicted; capabilities are lm-eval's tasks."""

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """The model as it is."""
        return loaded

    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Feature]:
        """See ``forgetting.tasks.encode``."""
        return encode_examples(self.tokenizer, examples, max_length)

    def encode_pretraining(self, documents: Sequence[Any], max_length: int) -> list[Feature]:
        """See ``forgetting.tasks.encode``."""
        return encode_texts(self.tokenizer, documents, max_length)

    def scorer(self, task: Task, batch_size: int, max_length: int) -> TaskScorer:
        """By log-likelihood and greedy continuation."""
        from forgetting.evaluation.scores import TaskScorer

        return TaskScorer(task, self.tokenizer, batch_size=batch_size, max_length=max_length)

    def capabilities(self, config: EvaluationConfig, pretraining: PretrainingText) -> Suite:
        """The suites."""
        return text_suite(config, trust_remote_code=self.base.trust_remote_code)

    def drift(self, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> DriftMeter:
        """Of the next token."""
        from forgetting.evaluation.drift import DriftMeter

        return DriftMeter(
            self.base.model,
            self.tokenizer,
            pretraining.held_out,
            max_length=max_length,
            max_tokens=config.drift_tokens,
            batch_size=config.batch_size,
        )


def text_suite(config: EvaluationConfig, **options: Any) -> Suite:
    """Load the suites that a configuration names."""
    from forgetting.evaluation.suite import load_suite

    data_dir = Path(config.data_dir) if config.data_dir else None
    return load_suite(list(config.suite), data_dir=data_dir, limit=config.limit, offset=config.offset, **options)
