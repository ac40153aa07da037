"""Where each example of a batch lies among the tokens that a layer sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Spans:
    """Examples as ranges of rows of a matrix (tokens, features).

    Attributes:
        starts, stops: A range per example; rows outside of all ranges are padding.
        tokens: Rows in all.
        single: Every row is an example of its own (the ``positionwise`` approximation, or inputs without tokens).
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    tokens: int
    single: bool = False

    @classmethod
    def rows(cls, examples: int, length: int) -> Spans:
        """``examples`` ranges of equal length, one after another."""
        return cls(
            starts=tuple(range(0, examples * length, length)),
            stops=tuple(range(length, (examples + 1) * length, length)),
            tokens=examples * length,
            single=length == 1,
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[slice]:
        return (slice(a, b) for a, b in zip(self.starts, self.stops, strict=True))

    def repeated(self, times: int) -> Spans:
        """The same examples where each token has several rows (heads that are normalised apart)."""
        if times == 1:
            return self
        starts, stops = (tuple(times * at for at in ends) for ends in (self.starts, self.stops))
        return Spans(starts, stops, times * self.tokens)

    @cached_property
    def length(self) -> int | None:
        """Tokens per example where the ranges are equal and cover every row, else ``None``."""
        length = self.tokens // max(len(self), 1)
        return length if self == Spans.rows(len(self), length) else None

    def sums(self, values: Tensor) -> Tensor:
        """Sum each example's rows: (tokens, D) to (examples, D), in at least float32 (deterministic on a GPU)."""
        values = values.to(compute_dtype(values))
        if self.length is not None:
            return values.view(len(self), self.length, -1).sum(1)
        return torch.stack([values[span].sum(0) for span in self])


def compute_dtype(values: Tensor) -> torch.dtype:
    """float64 for float64, else float32: products of half-precision numbers are never rounded to half again."""
    return torch.promote_types(values.dtype, torch.float32)


@dataclass(frozen=True)
class Examples:
    """The examples of one batch.

    Attributes:
        rows: B, the leading dimension of what the model is given.
        width: T, where it is given tokens.
        spans: Ranges in the B·T tokens where they are not simply the rows: rows are packed, or padding is cut off.
        packed: Rows hold more than one example.
        predicts_tokens: A label per token.
        positionwise: Every token counts as an example.
    """

    rows: int
    width: int | None = None
    spans: Spans | None = None
    packed: bool = False
    predicts_tokens: bool = False
    positionwise: bool = False

    def of(self, leading: Sequence[int], where: str) -> Spans:
        """Ranges for a tensor of shape (*leading, features) that a layer saw.

        Raises:
            ValueError: if the examples cannot be told apart in it; ``where`` is named.
        """
        tokens = prod(leading)
        per_token = self.width is not None and leading[:2] == (self.rows, self.width)
        flat = self.width is not None and len(leading) == 1 and tokens == self.rows * self.width
        # One row per example where every token is predicted: an expert's tokens, say, that happen to be as many.
        chance = self.predicts_tokens and len(leading) == 1 and not flat
        if (leading[0] != self.rows and not flat) or chance:
            raise ValueError(
                f"diagonal_fisher: {where} sees a tensor of shape {(*leading, '…')} in a batch of {self.rows}; "
                "its examples cannot be told apart, leave its parameters out or use backend='reference'"
            )
        if self.positionwise:
            return Spans(tuple(range(tokens)), tuple(range(1, tokens + 1)), tokens, single=True)
        if self.spans is not None and (per_token or flat):
            return self.spans.repeated(tokens // self.spans.tokens)
        if self.packed:
            raise ValueError(
                f"diagonal_fisher: {where} sees a tensor of shape {(*leading, '…')}, which is not one per token; "
                "packed examples cannot be told apart in it, give a row per example"
            )
        return Spans.rows(self.rows, tokens // self.rows)


def examples_of(inputs: Mapping[str, Any], labels: Tensor) -> Examples:
    """Find the examples of a batch.

    Packed examples are told by ``cu_seq_lens_q`` (int, offsets in the B·T tokens, as variable-length attention
    takes them), or by ``position_ids`` (B, T) that begin anew at 0. Padding that is told by a two-dimensional
    ``attention_mask`` is cut off. Of an encoder-decoder, whose two halves differ in length, every row is an example.
    """
    rows = len(labels)
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(tokens, Tensor) or tokens.dim() < 2 or len(tokens) != rows:
        return Examples(rows)
    width = tokens.shape[1]
    if "decoder_input_ids" in inputs or (labels.dim() == 2 and labels.shape[1] != width):
        return Examples(rows)
    predicts_tokens = labels.dim() == 2
    offsets, positions, mask = (inputs.get(key) for key in ("cu_seq_lens_q", "position_ids", "attention_mask"))
    flat_mask = mask is not None and mask.dim() == 2
    if offsets is not None:
        cuts = offsets.tolist()
    elif positions is not None and not flat_mask and positions.shape == (rows, width) and predicts_tokens:
        cuts = _restarts(positions, labels)
    elif mask is not None and mask.shape == (rows, width) and not bool(mask.all()):
        kept = mask.bool().cpu()
        starts = [row * width + int(kept[row].int().argmax()) for row in range(rows)]
        stops = [(row + 1) * width - int(kept[row].flip(0).int().argmax()) for row in range(rows)]
        spans = Spans(tuple(starts), tuple(stops), rows * width)
        return Examples(rows, width, spans, predicts_tokens=predicts_tokens)
    else:
        return Examples(rows, width, predicts_tokens=predicts_tokens)
    spans = Spans(tuple(cuts[:-1]), tuple(cuts[1:]), rows * width)
    return Examples(
        rows, width, spans, packed=len(spans) != rows or spans.length is None, predicts_tokens=predicts_tokens
    )


def rows_of(inputs: Mapping[str, Any], rows: int, part: slice) -> dict[str, Any]:
    """Some rows of a batch; what is given once for all rows stays as it is."""
    return {
        key: value[part] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
        for key, value in inputs.items()
    }


def _restarts(positions: Tensor, labels: Tensor) -> list[int]:
    """Offsets at which positions begin anew.

    Runs of zeros are padding (a collator fills up with position 0): without a label, each belongs to the example
    before it, where its gradient is zero.
    """
    begins = (positions.cpu() == 0).clone()
    begins[:, 0] = True
    flat = begins.flatten()
    labelled = (labels.cpu() != IGNORED).flatten()
    cuts = flat.nonzero().squeeze(1).tolist()
    ends = [*cuts[1:], len(flat)]
    kept = [a for a, b in zip(cuts, ends, strict=True) if b - a > 1 or labelled[a] or a % positions.shape[1] == 0]
    return [*kept, len(flat)]
