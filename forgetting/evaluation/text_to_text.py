"""Scores of encoder-decoders: the encoder reads the context, the decoder predicts the continuation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forgetting.evaluation.likelihood import evaluating
from forgetting.tasks.encode import IGNORED, TASK

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class TextToTextLikelihoods:
    """log p(continuation | context), the end-of-sequence token after it not counted.

    Args:
        pairs: Contexts and continuations.
        tokenizer: With an end-of-sequence token.
        config: The model's, for its start token.
        batch_size: Pairs per forward pass.
        max_length: Tokens of either side.

    Raises:
        UsageError: if a continuation is empty.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        *,
        batch_size: int,
        max_length: int,
    ) -> None:
        from forgetting.families.encoder_decoder import pair_features
        from forgetting.trainer import padded_batches

        features = pair_features(tokenizer, config, pairs, max_length, TASK) if pairs else []
        for feature in features:
            feature["labels"] = [*feature["labels"][:-1], IGNORED]  # a choice need not end the text
        self.counts = np.array([len(feature["labels"]) - 2 for feature in features], dtype=np.int64)
        self._order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]), reverse=True)
        self._batches = padded_batches([features[i] for i in self._order], tokenizer, batch_size)

    def score(self, model: PreTrainedModel) -> list[tuple[float, bool]]:
        """Return (log p in nats, whether greedy decoding gives these tokens) of every pair."""
        from forgetting.families.scoring import predictions

        found: list[tuple[float, bool]] = []
        with evaluating(model):
            for batch in self._batches:
                logits, labels = predictions(model, batch)
                log_probs = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0].double().cpu()
                greedy = (logits.argmax(1) == labels).cpu()
                sizes = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
                parts = zip(log_probs.split(sizes), greedy.split(sizes), strict=True)
                found += [(float(part.sum()), bool(best.all())) for part, best in parts]
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(found)
        for index, score in zip(self._order, found, strict=True):
            scores[index] = score
        return scores


class TextToTextGenerations:
    """Prompts that the encoder reads; what the decoder writes greedily.

    Args:
        prompts: Texts.
        tokenizer: With an end-of-sequence token.
        config: The model's, for its start token.
        batch_size: Prompts per batch.
        max_length: Tokens of a prompt.
        max_new_tokens: Tokens written.
        until: Strings that end a text; they are not part of it.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        *,
        batch_size: int,
        max_length: int,
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> None:
        from forgetting.families.encoder_decoder import read_and_written, start_token

        self._start = start_token(config)
        self._tokenizer, self._max_new_tokens, self._until = tokenizer, max_new_tokens, tuple(until)
        read = [ids for ids, _, _ in read_and_written(tokenizer, [(prompt, "-") for prompt in prompts], max_length)]
        padding = tokenizer.pad_token_id or 0
        self._batches = []
        for begin in range(0, len(read), batch_size):
            rows = read[begin : begin + batch_size]
            width = max(map(len, rows))
            ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            self._batches.append((ids, mask))

    def generate(self, model: PreTrainedModel) -> list[str]:
        """Return the texts, in the order of the prompts."""
        texts = []
        generate: Any = model.generate
        with evaluating(model):
            for ids, mask in self._batches:
                written = generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=self._max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    decoder_start_token_id=self._start,
                    eos_token_id=self._tokenizer.eos_token_id,
                    pad_token_id=self._tokenizer.pad_token_id or 0,
                )
                for text in self._tokenizer.batch_decode(written[:, 1:], skip_special_tokens=True):
                    for stop in self._until:
                        text = text.split(stop)[0]
                    texts.append(text)
        return texts


class TextToTextReader:
    """Encoder-decoders.

    Args:
        config: The model's, for its start token.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        groups: Sequence[Hashable],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
    ) -> TextToTextLikelihoods:
        """See Reader."""
        return TextToTextLikelihoods(pairs, tokenizer, self.config, batch_size=batch_size, max_length=max_length)

    def generations(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> TextToTextGenerations:
        """See Reader."""
        return TextToTextGenerations(
            prompts,
            tokenizer,
            self.config,
            batch_size=batch_size,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            until=until,
        )
