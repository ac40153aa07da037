"""Direct scoring of multiple-choice items: what lm-eval's ``acc`` computes, without its harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forgetting.micro.probes import load_probe, probe_names
from forgetting.micro.skills import ProbeItem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def choice_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[ProbeItem],
    batch_size: int = 256,
) -> float:
    """Return the share of items whose right choice has the greatest sum of log-probabilities.

    A choice follows its context after one space. The model is left in the mode it was in.
    """
    import torch

    rows: list[tuple[list[int], int]] = []
    for item in items:
        context = tokenizer.encode(item.context, add_special_tokens=False)
        for choice in item.choices:
            whole = tokenizer.encode(f"{item.context} {choice}", add_special_tokens=False)
            rows.append((whole, len(context)))
    scores: list[float] = []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            width = max(len(ids) for ids, _ in batch)
            # Padding stands on the right, so under causal attention no scored position sees it.
            ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batch])
            ids = ids.to(model.device)
            position = torch.arange(1, width, device=ids.device)
            first = torch.tensor([n for _, n in batch], device=ids.device)[:, None]
            last = torch.tensor([len(whole) for whole, _ in batch], device=ids.device)[:, None]
            log_probs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
            log_probs = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)
            scores += (log_probs * ((position >= first) & (position < last))).sum(-1).tolist()
    model.train(was_training)
    right, row = 0, 0
    for item in items:
        options = scores[row : row + len(item.choices)]
        right += options.index(max(options)) == item.gold
        row += len(item.choices)
    return right / len(items)


def evaluate_probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Return the accuracy on every shipped probe, by task name (``micro_grammar``, ...)."""
    return {name: choice_accuracy(model, tokenizer, load_probe(name)) for name in probe_names()}
