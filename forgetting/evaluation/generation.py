"""Greedy continuations of prompts that are tokenised once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from forgetting.errors import UsageError
from forgetting.evaluation.budget import BatchSize, fitting, sequences_of
from forgetting.evaluation.encoding import encode_texts
from forgetting.evaluation.likelihood import evaluating
from forgetting.models import prompt_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        text: Without special tokens, cut at the first of the strings that end it.
        tokens: Ids up to the end token, which is not among them; they are not cut at a string.
        finished: Whether it came to an end token or string; if not, it was cut at the most tokens allowed.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class _Batch:
    input_ids: torch.Tensor  # (B, W), padded on the left
    attention_mask: torch.Tensor  # (B, W)
    members: list[int]


class PreparedGenerations:
    """Prompts to be continued greedily, as left-padded batches, the longest first.

    A model that reads a soft prompt before its input gets prompts of one length at a time, without padding between.

    Args:
        prompts: Texts; results are in this order.
        tokenizer: Its EOS ends a continuation, as the model's own does.
        batch_size: Prompts per batch, or slots (of prompts and continuations), halved while memory runs out.
        max_length: Most tokens of prompt and continuation together; a longer prompt loses its beginning.
        max_new_tokens: Most tokens of a continuation.
        until: Strings that end a continuation; they are not part of it.

    Raises:
        UsageError: if ``max_new_tokens`` leaves no room for a prompt.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: BatchSize,
        max_length: int,
        max_new_tokens: int,
        until: Sequence[str] = (),
    ) -> None:
        if max_new_tokens >= max_length:
            raise UsageError(
                f"max_new_tokens {max_new_tokens}: leaves no room for a prompt within max_length {max_length}; "
                "lower it, or raise max_length"
            )
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.until = tuple(until)
        self._encoded = [ids[-(max_length - max_new_tokens) :] for ids in encode_texts(tokenizer, prompts)]
        self._batch_size = batch_size
        self._longest = max((len(ids) for ids in self._encoded), default=0) + max_new_tokens
        self._made: dict[tuple[bool, BatchSize], list[_Batch]] = {}
        self._batches(True, batch_size)

    def _batches(self, padded: bool, batch_size: BatchSize) -> list[_Batch]:
        """All prompts, made once; where they are not padded, those of one length at a time."""
        if (padded, batch_size) not in self._made:
            by_length: dict[int, list[int]] = {}
            for index, ids in enumerate(self._encoded):
                by_length.setdefault(0 if padded else len(ids), []).append(index)
            made = [batch for members in by_length.values() for batch in self._batched(members, batch_size)]
            self._made[padded, batch_size] = made
        return self._made[padded, batch_size]

    def _batched(self, members: Iterable[int], batch_size: BatchSize) -> list[_Batch]:
        order = sorted(members, key=lambda index: (-len(self._encoded[index]), index))
        batches: list[_Batch] = []
        while order:
            n = sequences_of(batch_size, len(self._encoded[order[0]]) + self.max_new_tokens)
            batches.append(self._batch(order[:n]))
            order = order[n:]
        return batches

    def _batch(self, members: list[int]) -> _Batch:
        encoded = self._encoded
        width = max(len(encoded[index]) for index in members)
        padding = self.tokenizer.pad_token_id or 0
        rows = [[padding] * (width - len(encoded[i])) + encoded[i] for i in members]
        mask = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in members]
        return _Batch(torch.tensor(rows), torch.tensor(mask), members)

    def generate(self, model: PreTrainedModel) -> list[str]:
        """Return the continuations, without special tokens, cut at EOS and at the first of ``until``."""
        return [continuation.text for continuation in self.continuations(model)]

    def continuations(self, model: PreTrainedModel) -> list[Continuation]:
        """Return the continuations with their tokens, and whether each came to an end."""
        written, self._batch_size = fitting(self._batch_size, self._longest, partial(self._continuations, model))
        return written

    def _continuations(self, model: PreTrainedModel, batch_size: BatchSize) -> list[Continuation]:
        written = [Continuation("", (), False)] * len(self._encoded)
        ends = self._end_tokens(model)
        with evaluating(model), warnings.catch_warnings():
            # Of a soft prompt's peft says that it ignores positions: those of unpadded rows are what they would be.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            for batch in self._batches(not prompt_length(model), batch_size):
                for index, ids in zip(batch.members, self._continue(model, batch, ends), strict=True):
                    written[index] = self._cut(ids, ends)
        return written

    def _cut(self, ids: list[int], ends: list[int]) -> Continuation:
        end = next((k for k, token in enumerate(ids) if token in ends), len(ids))
        whole = text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        for stop in self.until:
            text = text.split(stop)[0]
        return Continuation(text, tuple(ids[:end]), end < len(ids) or len(text) < len(whole))

    def _end_tokens(self, model: PreTrainedModel) -> list[int]:
        own = getattr(model.generation_config, "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        return sorted(token for token in ends if token is not None)

    def _continue(self, model: PreTrainedModel, batch: _Batch, ends: list[int]) -> list[list[int]]:
        from lm_eval.models.utils_hf import stop_sequences_criteria

        rows, width = batch.input_ids.shape
        output = model.generate(  # type: ignore[operator]  # torch types it as Module | Tensor
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends or None,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, list(self.until), width, rows),
        )
        return output[:, width:].tolist()
