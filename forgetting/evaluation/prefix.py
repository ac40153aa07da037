"""A beginning that many sequences share (an instruction, the same solved examples), read once per model."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forgetting.evaluation.packing import MIN_SHARE, TokenSequence, common_prefix

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

MIN_TOKENS = 16
MIN_GROUPS = 8
"""A shorter beginning, or one of fewer groups, is not kept apart: the smaller batches cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Token ids that the sequences at the indices ``members`` begin with."""

    ids: tuple[int, ...]
    members: tuple[int, ...]


def find_prefixes(
    sequences: Sequence[TokenSequence], groups: Sequence[Hashable], families: Sequence[Hashable | None]
) -> list[Prefix]:
    """Return the beginnings worth reading once.

    Args:
        sequences: What will be scored.
        groups: Equal keys share what they have in common anyway (an item's choices).
        families: Equal keys may begin alike (the items of a task); ``None`` of what is to be left alone.

    Returns:
        At most one per family: of the common beginnings of its members that have no slot which predicts a scored
        token, and are at least ``MIN_SHARE`` of each, the one that saves most.
    """
    by_family: dict[Hashable, list[int]] = {}
    for index, family in enumerate(families):
        if family is not None:
            by_family.setdefault(family, []).append(index)
    found = []
    for indices in by_family.values():
        # In lexicographic order what begins alike lies together: what more than half begin with, the middle one does.
        middle = sorted(sequences[index].ids for index in indices)[len(indices) // 2]
        alike = {index: _before_scored(middle, sequences[index]) for index in indices}
        lengths = sorted(alike.values(), reverse=True)
        length = max(enumerate(lengths), key=lambda pair: pair[0] * pair[1])[
            1
        ]  # read once instead of pair[0] + 1 times
        members = [i for i in indices if alike[i] >= length >= MIN_SHARE * (len(sequences[i].ids) - 1)]
        if length >= MIN_TOKENS and len({groups[index] for index in members}) >= MIN_GROUPS:
            found.append(Prefix(tuple(middle[:length]), tuple(members)))
    return found


def _before_scored(ids: list[int], sequence: TokenSequence) -> int:
    """How many tokens a sequence begins with as ``ids`` does, before the slot that predicts its first scored one."""
    return min(common_prefix(ids, sequence.ids), len(sequence.ids) - 1 - sequence.scored)


class CachedPrefix:
    """A model's keys and values of a beginning.

    Args:
        model: In eval mode, without gradients.
        ids: The beginning.

    Raises:
        TypeError: if the model keeps no keys and values that can be repeated.
    """

    def __init__(self, model: PreTrainedModel, ids: tuple[int, ...]) -> None:
        from forgetting.evaluation.likelihood import takes_logits_to_keep

        last: dict[str, Any] = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
        output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, **last)
        cache: Any = getattr(output, "past_key_values", None)
        if not hasattr(cache, "batch_repeat_interleave"):
            raise TypeError(f"{type(model).__name__} keeps no keys and values")
        self.ids = ids
        self._cache: Cache = cache

    def rows(self, n: int) -> Cache:
        """Return a copy for ``n`` rows: a forward pass appends to what it is given."""
        repeated = copy.deepcopy(self._cache)
        repeated.batch_repeat_interleave(n)
        return repeated
