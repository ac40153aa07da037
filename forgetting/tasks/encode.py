"""Examples and documents to training features, rows of packed features, and batches.

A feature is a dictionary: ``input_ids`` and ``labels`` (lists of T token ids; -100 where no loss is taken, always
so at position 0, which nothing predicts), ``source`` (an index into ``mixing.SOURCES``) and ``truncated`` (0 or 1).
A packed row has ``position_ids``, which begin again at 0 with each example, and ``segments``, the examples' lengths
(they sum to T); its ``truncated`` counts. What a data set of a mitigation's own gives may have ``weights`` (T floats):
the trainer hands them to the mitigation's ``loss``. Features of other families than decoders have further keys, for
their models alone (``forgetting.families``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from forgetting.evaluation.encoding import encode_pairs, prefix_token_id
from forgetting.tasks.lazy import Lazy
from forgetting.tasks.mixing import SOURCES
from forgetting.tasks.task import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Feature = dict[str, Any]

IGNORED = -100
BOOKKEEPING = ("source", "truncated", "lengths", "weights")
"""Keys of a batch that are about it, and no input of a model."""
TASK = SOURCES.index("task")
PRETRAINING = SOURCES.index("pretraining")


def _feature(context: list[int], target: list[int], source: int, *, truncated: bool) -> Feature:
    labels = [IGNORED] * len(context) + target
    return {
        "input_ids": context + target,
        "labels": [IGNORED, *labels[1:]],
        "source": source,
        "truncated": int(truncated),
    }


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Feature:
    """Encode an example: loss on the completion and on the end-of-sequence token after it, none on the prompt.

    The boundary between prompt and completion falls where scoring puts it (``encode_pairs``), so that training
    and scoring agree. What is too long loses the beginning of its prompt (a beginning-of-sequence token stays);
    a completion that leaves no room for one token of context loses its end.

    Args:
        tokenizer: Its ``eos_token_id`` ends the completion, where it has one.
        example: Prompt and completion.
        max_length: Most tokens of the feature, at least 2.

    Returns:
        A feature of the source ``task``.

    Raises:
        UsageError: if the completion has no token of its own.
    """
    return encode_examples(tokenizer, [example], max_length)[0]


def encode_examples(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_length: int) -> list[Feature]:
    """Encode many examples at once; see :func:`encode`."""
    pairs = encode_pairs(tokenizer, [(example.prompt, example.completion) for example in examples])
    return [_example_feature(tokenizer, context, target, max_length) for context, target in pairs]


def _example_feature(
    tokenizer: PreTrainedTokenizerBase, context: list[int], target: list[int], max_length: int
) -> Feature:
    if tokenizer.eos_token_id is not None:
        target = [*target, tokenizer.eos_token_id]
    truncated = len(context) + len(target) > max_length
    target = target[: max_length - 1]
    room = max_length - len(target)
    if len(context) > room:
        head = context[:1] if context[0] == tokenizer.bos_token_id else []
        rest = room - len(head)
        context = head + (context[-rest:] if rest else [])
    return _feature(context, target, TASK, truncated=truncated)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Feature:
    """Encode a document: every token of it carries loss, and the end-of-sequence token after it.

    The first token is predicted from the token that begins a document in pretraining (``prefix_token_id``). A
    document that is too long loses its end, and then has no end-of-sequence token.

    Args:
        tokenizer: Needs no padding token.
        text: The document.
        max_length: Most tokens of the feature, at least 2.

    Returns:
        A feature of the source ``pretraining``.
    """
    return encode_texts(tokenizer, [text], max_length)[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int) -> list[Feature]:
    """Encode many documents at once; see :func:`encode_text`."""
    documents = list(texts)
    if not documents:
        return []
    prefix, end = prefix_token_id(tokenizer), tokenizer.eos_token_id
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    features = []
    for ids in encoded:
        context = [] if prefix is None or ids[:1] == [prefix] else [prefix]
        target = ids if end is None else [*ids, end]
        room = max_length - len(context)
        features.append(_feature(context, target[:room], PRETRAINING, truncated=len(target) > room))
    return features


class ExampleDataset(Dataset):
    """Features as a map-style data set, in their order."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        return self.features[index]


def pack(features: Sequence[Feature], max_length: int) -> Packed:
    """Pack features into rows of at most ``max_length`` tokens, each into the first row with room for it.

    A row holds features of one source. No token of a feature attends to another feature's, and nothing predicts
    a feature's first token, so that the loss is the sum of the features' losses.

    Raises:
        ValueError: if a feature is longer than ``max_length``.
    """
    lengths = array("l", (len(feature["input_ids"]) for feature in features))
    shortest, filled = min(lengths, default=0), array("l")
    row_of = array("l")
    open_rows: dict[int, list[int]] = {}
    for feature, length in zip(features, lengths, strict=True):
        if length > max_length:
            raise ValueError(f"pack: a feature has {length} tokens, more than max_length {max_length}")
        candidates = open_rows.setdefault(feature["source"], [])
        row = next((row for row in candidates if filled[row] + length <= max_length), None)
        if row is None:
            row = len(filled)
            filled.append(0)
            candidates.append(row)
        filled[row] += length
        row_of.append(row)
        if filled[row] + shortest > max_length:
            candidates.remove(row)
    return Packed(features, np.array(row_of, dtype=np.int64))


class Packed(Lazy[Feature]):
    """Rows of features, put together when they are asked for.

    Args:
        features: Of which, in the order in which they stand in a row.
        row_of: The row of each, int64 (N,); every row has one.
    """

    def __init__(self, features: Sequence[Feature], row_of: NDArray[np.int64]) -> None:
        self.features = features
        self._order = np.argsort(row_of, kind="stable")
        self._ends = np.cumsum(np.bincount(row_of)) if len(row_of) else row_of

    def __len__(self) -> int:
        return len(self._ends)

    def item(self, index: int) -> Feature:
        """See :class:`Lazy`."""
        begin = self._ends[index - 1] if index else 0
        row: Feature = {key: [] for key in ("input_ids", "labels", "position_ids", "segments")}
        for i in self._order[begin : self._ends[index]]:
            feature = self.features[int(i)]
            length = len(feature["input_ids"])
            row |= {"source": feature["source"], "truncated": row.get("truncated", 0) + feature["truncated"]}
            row["input_ids"] += feature["input_ids"]
            row["labels"] += [IGNORED, *feature["labels"][1:]]
            row["position_ids"] += range(length)
            row["segments"].append(length)
        return row


class Collator:
    """Features to a batch, padded on the right to the longest.

    A batch of B features has ``input_ids``, ``labels`` (-100 where padded) and ``attention_mask``, all int64 of
    shape (B, T); ``truncated`` (B,); ``source`` and ``lengths``, int64 of shape (N,): of each of the N examples, in
    order, its source and its number of tokens. N is B unless rows are packed. Where any feature has ``weights``, the
    batch has them, float32 of shape (B, T): 1 where a feature has none, 0 where padded. With a packed row among them,
    a batch has ``position_ids`` (B, T) too, and its ``attention_mask`` is float32 of shape (B, 1, T, T), to be added
    to the attention's scores: 0 within an example up to the present token, the least finite number elsewhere. Both
    the ``sdpa`` and the ``eager`` attention of transformers take it as it is, with fp32 weights and under bf16
    autocast, which are the precisions trained in. With weights of another precision, cast it to theirs: torch's
    attention reads a float32 mask beside float64 queries wrongly, without an error.

    Of other families, ``labels`` are (B, 1 + N), ``positions`` and ``decoder_input_ids`` are padded with 0, ``head``
    is (B,), and ``pixel_values`` are stacked; an image counts as one token.

    Args:
        pad_token_id: Fills up; it is masked and carries no loss, so any token will do.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """With the tokenizer's padding token, else its end-of-sequence token, else token 0."""
        known = (getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None), 0)
        return cls(next(token for token in known if token is not None))

    def __call__(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Collate B features into a batch, see the class."""
        if "pixel_values" in features[0]:
            return self._images(features)
        segments = [feature.get("segments", [len(feature["input_ids"])]) for feature in features]
        batch = {
            "input_ids": self._padded(features, "input_ids", self.pad_token_id),
            "labels": self._padded(features, "labels", IGNORED),
            "truncated": torch.tensor([feature["truncated"] for feature in features]),
            "source": torch.tensor([f["source"] for f, row in zip(features, segments, strict=True) for _ in row]),
            "lengths": torch.tensor([length for row in segments for length in row]),
        }
        if any("weights" in feature for feature in features):
            batch["weights"] = self._weights(features)
        width = batch["input_ids"].shape[1]
        if any("segments" in feature for feature in features):
            batch["attention_mask"] = _block_causal(segments, width)
            positions = [{"position_ids": [i for n in row for i in range(n)]} for row in segments]
            batch["position_ids"] = self._padded(positions, "position_ids", 0)
        else:
            lengths = batch["lengths"][:, None]
            batch["attention_mask"] = (torch.arange(width)[None] < lengths).long()
        for key in ("positions", "decoder_input_ids"):
            if key in features[0]:
                batch[key] = self._padded(features, key, 0)
        if "head" in features[0]:
            batch["head"] = torch.tensor([feature["head"] for feature in features])
        return batch

    def _images(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        batch = {key: torch.tensor([feature[key] for feature in features]) for key in ("source", "truncated", "head")}
        if any("weights" in feature for feature in features):
            batch["weights"] = self._weights(features)
        return batch | {
            "pixel_values": torch.stack([feature["pixel_values"] for feature in features]),
            "labels": self._padded(features, "labels", IGNORED),
            "lengths": torch.ones(len(features), dtype=torch.long),
        }

    def _weights(self, features: Sequence[Feature]) -> torch.Tensor:
        weights = [{"weights": f.get("weights", [1.0] * len(f["labels"]))} for f in features]
        return self._padded(weights, "weights", 0.0)

    @staticmethod
    def _padded(features: Sequence[Feature], key: str, value: float) -> torch.Tensor:
        width = max(len(feature[key]) for feature in features)
        return torch.tensor([feature[key] + [value] * (width - len(feature[key])) for feature in features])


def _block_causal(segments: list[list[int]], width: int) -> torch.Tensor:
    """The additive mask (B, 1, T, T); padding attends to padding, since a row without any key would give NaN."""
    owner = torch.stack(
        [
            torch.repeat_interleave(torch.tensor([*range(len(row)), -1]), torch.tensor([*row, width - sum(row)]))
            for row in segments
        ]
    )  # (B, T)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    allowed = (owner[:, :, None] == owner[:, None, :]) & causal  # (B, T, T)
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return mask[:, None]
