"""Encoder-decoders: text-to-text models (T5), which read the prompt and write the completion."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from forgetting.errors import UsageError
from forgetting.families.base import Family
from forgetting.tasks.encode import IGNORED, PRETRAINING, TASK, Feature

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from forgetting.config import EvaluationConfig
    from forgetting.evaluation.feature_drift import FeatureDrift
    from forgetting.evaluation.scores import TaskScorer
    from forgetting.evaluation.suite import Suite
    from forgetting.models import LoadedModel
    from forgetting.tasks.pretraining import PretrainingText
    from forgetting.tasks.task import Example, Task


class EncoderDecoder(Family):
    """The encoder reads the prompt, the decoder writes the completion (Raffel et al. 2020, arXiv 1910.10683).

    Of text without prompts, the encoder reads a beginning and the decoder predicts the rest.
    """

    cannot_sample: ClassVar[str] = " from nothing, and model {} needs something to read"

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """Behind the package's convention."""
        from forgetting.families.encoder_decoder_model import EncoderDecoderModel

        return replace(loaded, model=EncoderDecoderModel(loaded.model).eval())

    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Feature]:
        """Prompts and completions; a prompt that is too long loses its beginning, a completion its end."""
        pairs = [(example.prompt, example.completion) for example in examples]
        return pair_features(self.tokenizer, self.base.model.config, pairs, max_length, TASK)

    def encode_pretraining(self, documents: Sequence[Any], max_length: int) -> list[Feature]:
        """Documents in two parts; the same ones, whenever a document is encoded."""
        return text_features(self.tokenizer, self.base.model.config, documents, max_length)

    def scorer(self, task: Task, batch_size: int, max_length: int) -> TaskScorer:
        """By log-likelihood of the choices, and what greedy decoding writes."""
        from forgetting.evaluation.scores import TaskScorer
        from forgetting.evaluation.text_to_text import TextToTextReader

        reader = TextToTextReader(self.base.model.config)
        return TaskScorer(task, self.tokenizer, batch_size=batch_size, max_length=max_length, reader=reader)

    def capabilities(self, config: EvaluationConfig, pretraining: PretrainingText) -> Suite:
        """The suites; the encoder reads the context, the decoder predicts the continuation."""
        from forgetting.evaluation.text_to_text import TextToTextReader
        from forgetting.families.decoder import text_suite

        return text_suite(
            config, reader=TextToTextReader(self.base.model.config), trust_remote_code=self.base.trust_remote_code
        )

    def drift(self, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> FeatureDrift:
        """Of the rest of each text, its beginning given."""
        from forgetting.evaluation.feature_drift import FeatureDrift

        return FeatureDrift(
            self.base.model,
            self.tokenizer,
            pretraining.held_out,
            lambda documents: self.encode_pretraining([str(getattr(d, "prompt", d)) for d in documents], max_length),
            max_tokens=config.drift_tokens,
            batch_size=config.batch_size,
            token_of=lambda label: label,
        )


def read_and_written(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_length: int
) -> list[tuple[list[int], list[int], bool]]:
    """Encode (what is read, what is written), surrounding white space apart; both end with the end-of-sequence token.

    Returns:
        What is read, what is written, and whether either was too long for ``max_length`` tokens.

    Raises:
        UsageError: if nothing is written, or the tokenizer has no end-of-sequence token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UsageError("tokenizer: has no end-of-sequence token; a text-to-text model needs one")
    encode: Any = tokenizer
    sides = [
        encode([text.strip() for text in side], add_special_tokens=False, return_attention_mask=False, verbose=False)
        for side in zip(*pairs, strict=True)
    ]
    found = []
    for read, written in zip(*(side["input_ids"] for side in sides), strict=True):
        if not written:
            raise UsageError("completion: is empty; a text-to-text model is trained on what it writes")
        cut = len(read) >= max_length or len(written) >= max_length
        found.append(([*read[-(max_length - 1) :], end], [*written[: max_length - 1], end], cut))
    return found


def start_token(config: PretrainedConfig) -> int:
    """The token that begins what the decoder writes."""
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    return 0


def pair_features(
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    source: int,
) -> list[Feature]:
    """Return features of what is read and written; each at most ``max_length`` tokens."""
    return [
        {
            "input_ids": read,
            "decoder_input_ids": [start_token(config), *written],
            "labels": [IGNORED, *written],
            "source": source,
            "truncated": int(cut),
        }
        for read, written, cut in read_and_written(tokenizer, pairs, max_length)
    ]


def text_features(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, documents: Iterable[str], max_length: int
) -> list[Feature]:
    """Return features of documents in two parts; one of a single word gives none.

    Where a document is cut, between two words, depends on its text alone.
    """
    pairs = []
    for text in documents:
        cuts = [i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace() and text[i:].strip()]
        if cuts and text[: cuts[-1]].strip():
            cut = random.Random(text).choice(cuts)
            pairs.append((text[:cut], text[cut:]))
    return pair_features(tokenizer, config, pairs, max_length, PRETRAINING) if pairs else []
