"""Drift: how far a tuned model's predictions and weights are from the base model's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from forgetting.distributed import total
from forgetting.errors import UsageError
from forgetting.evaluation.encoding import encode_pairs, encode_texts
from forgetting.evaluation.likelihood import evaluating
from forgetting.fisher.shards import local, mesh_of
from forgetting.models import layer_name, logits_before
from forgetting.results import TextDrift

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.fisher import DiagonalFisher
    from forgetting.tasks.task import Example

LOGIT_BYTES = 2**28
"""Most bytes of one model's logits in a batch, in fp32; a batch has fewer rows where the vocabulary is large."""


@dataclass(frozen=True, slots=True)
class _Windows:
    """A text as windows of tokens per batch, padded on the right: input_ids (B, T), what is predicted (B, T − 1)."""

    batches: list[tuple[torch.Tensor, torch.Tensor]]
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TokenDrift:
    """A text's N predicted tokens one by one, under the base model's distribution p and the tuned one's q.

    Where one of the two has more outputs (rows of padding beyond the tokenizer's), both are of those that they share.

    Attributes:
        kl: KL(p ‖ q) over the vocabulary, nats, (N,); in float32 it may lie a rounding error below 0.
        log_p, log_q: Log-probability of the token that stands there, nats, (N,).
        same_top: Whether both find the same token the most probable, (N,).
        bytes: UTF-8 bytes of these tokens.
    """

    kl: NDArray[np.float64]
    log_p: NDArray[np.float64]
    log_q: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    bytes: int


class DriftMeter:
    """Cross-entropy of a model, and its KL divergences from the base model, on fixed texts.

    A document that is longer than ``max_length`` is cut into windows that overlap by one token, so that each of
    its tokens but the first is predicted once, from at most ``max_length`` − 1 tokens before it. The first token
    is predicted only where the tokenizer puts a BOS before it. Nothing of the base model's output is kept: it is
    computed again at every measurement, so that memory does not grow with the texts.

    Args:
        base_model: The reference, in whatever mode; it is left in it.
        tokenizer: Both models'.
        texts: Documents by text name.
        max_length: Tokens per window, at least 2.
        max_tokens: At most this many predicted tokens per text, the first ones.
        batch_size: Windows per forward pass.

    Raises:
        UsageError: if a text has no document of at least two tokens.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Mapping[str, Sequence[str]],
        max_length: int,
        max_tokens: int,
        batch_size: int,
    ) -> None:
        self.base = base_model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self._texts = {name: self._prepare(documents) for name, documents in texts.items()}
        for name, windows in self._texts.items():
            if not windows.tokens:
                raise UsageError(f"held-out text {name!r}: has no document of two tokens or more; give running text")

    def measure(self, model: PreTrainedModel, task: Sequence[Example] = ()) -> dict[str, TextDrift]:
        """Measure a model.

        For a text with N predicted tokens, p the base model and q the given one, all in nats per token:
        ``ce`` = −(1/N) Σ ln q(x_i | x_<i), ``kl_forward`` = (1/N) Σ KL(p ‖ q), ``kl_reverse`` = (1/N) Σ KL(q ‖ p),
        each KL over the whole vocabulary; ``total_variation`` = (1/N) Σ ½ Σ_v |p(v) − q(v)|, no nats; ``bpb`` = the sum
        of ce over ln 2 · the UTF-8 bytes of these tokens.

        Args:
            model: Left in the mode it was in. For the base model itself both KLs are exactly 0.
            task: Examples of the task trained on last.

        Returns:
            A drift per text; ``task_inputs``, of the tokens of the task's prompts (where one has two tokens), and
            ``task_answers``, of the right completions' tokens after their prompts. The first of those is where
            the model answers: of answers of one token this is the KL of Shenfeld et al. 2025 (arXiv 2509.04259), who
            take it over answers drawn from the base model.
        """
        texts = self._with_task(task)
        with evaluating(self.base), evaluating(model):
            return {name: self._measure(model, windows) for name, windows in texts.items()}

    def tokens(self, model: PreTrainedModel, task: Sequence[Example] = ()) -> dict[str, TokenDrift]:
        """Measure a model at every token; arguments and texts as in :meth:`measure`."""
        texts = self._with_task(task)
        with evaluating(self.base), evaluating(model):
            return {name: self._tokens(model, windows) for name, windows in texts.items()}

    def _with_task(self, task: Sequence[Example]) -> dict[str, _Windows]:
        texts = dict(self._texts)
        if task:
            texts["task_inputs"] = self._prepare([example.prompt for example in task])
            texts["task_answers"] = self._prepare_answers(task)
        return {name: windows for name, windows in texts.items() if windows.tokens}

    def _measure(self, model: PreTrainedModel, windows: _Windows) -> TextDrift:
        sums = torch.zeros(4, dtype=torch.float64)  # ce, KL(p ‖ q), KL(q ‖ p), TV(p, q)
        for input_ids, predicted in windows.batches:
            targets = input_ids[:, 1:][predicted].to(model.device)
            log_q = _log_probs(model, input_ids, predicted)
            sums[0] -= log_q.gather(1, targets[:, None]).sum(dtype=torch.float64).cpu()
            if model is not self.base:
                log_p = _log_probs(self.base, input_ids, predicted).to(log_q.device)
                difference = log_p - log_q
                sums[1] += (log_p.exp_() * difference).sum(dtype=torch.float64).cpu()
                sums[2] -= (log_q.exp_() * difference).sum(dtype=torch.float64).cpu()
                sums[3] += log_p.sub_(log_q).abs_().sum(dtype=torch.float64).cpu() / 2  # both are probabilities now
        ce, kl_forward, kl_reverse, total_variation = (sums / windows.tokens).tolist()
        return TextDrift(
            ce=ce,
            bpb=float(sums[0]) / math.log(2) / windows.bytes,
            kl_forward=kl_forward,
            kl_reverse=kl_reverse,
            total_variation=total_variation,
            tokens=windows.tokens,
        )

    def _tokens(self, model: PreTrainedModel, windows: _Windows) -> TokenDrift:
        parts, common = [], min(each.get_output_embeddings().weight.shape[0] for each in (self.base, model))
        for input_ids, predicted in windows.batches:
            log_q = _log_probs(model, input_ids, predicted, common)
            log_p = _log_probs(self.base, input_ids, predicted, common).to(log_q.device)
            targets = input_ids[:, 1:][predicted].to(log_q.device)[:, None]
            observed = [each.gather(1, targets)[:, 0].double() for each in (log_p, log_q)]
            same = (log_p.argmax(-1) == log_q.argmax(-1)).double()
            difference = log_p - log_q
            kl = (log_p.exp_() * difference).sum(-1, dtype=torch.float64)
            parts.append(torch.stack([kl, *observed, same]).cpu().numpy())
        kl, log_p, log_q, same = np.concatenate(parts, axis=1)
        return TokenDrift(kl, log_p, log_q, same.astype(np.bool_), windows.bytes)

    def _prepare(self, documents: Sequence[str]) -> _Windows:
        windows: list[tuple[list[int], int]] = []
        tokens = covered = 0
        for text, ids in zip(documents, encode_texts(self.tokenizer, documents), strict=True):
            kept = ids[: self.max_tokens - tokens + 1]
            if len(kept) < 2:
                continue
            tokens += len(kept) - 1
            whole = len(text.encode()) if len(kept) == len(ids) else self._bytes(kept)
            covered += whole - self._bytes(kept[:1])
            step = self.max_length - 1
            windows += [(kept[start : start + self.max_length], 1) for start in range(0, len(kept) - 1, step)]
        return _Windows(list(self._batches(windows)), tokens, max(covered, 1))

    def _prepare_answers(self, examples: Sequence[Example]) -> _Windows:
        """A completion is predicted after as much of its prompt's end as fits."""
        windows: list[tuple[list[int], int]] = []
        tokens = covered = 0
        for context, target in encode_pairs(self.tokenizer, [(e.prompt, e.completion) for e in examples]):
            kept = target[: min(self.max_tokens - tokens, self.max_length - 1)]
            if not kept:
                break
            tokens += len(kept)
            context = context[-(self.max_length - len(kept)) :]
            covered += self._bytes(context + kept) - self._bytes(context)
            windows.append((context + kept, len(context)))
        return _Windows(list(self._batches(windows)), tokens, max(covered, 1))

    def _bytes(self, ids: list[int]) -> int:
        return len(str(self.tokenizer.decode(ids, skip_special_tokens=True)).encode())

    def _batches(self, windows: list[tuple[list[int], int]]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of (ids, position of the first predicted one)."""
        windows = sorted(windows, key=lambda window: len(window[0]), reverse=True)
        vocabulary = self.base.get_output_embeddings().weight.shape[0]
        start = 0
        while start < len(windows):
            width = len(windows[start][0])
            rows = max(1, min(self.batch_size, LOGIT_BYTES // (4 * width * vocabulary)))
            batch = windows[start : start + rows]
            ids = torch.tensor([window + [0] * (width - len(window)) for window, _ in batch])
            first = torch.tensor([[first] for _, first in batch])
            end = torch.tensor([[len(window)] for window, _ in batch])
            place = torch.arange(1, width)
            yield ids, (first <= place) & (place < end)
            start += rows


def _log_probs(
    model: PreTrainedModel, input_ids: torch.Tensor, predicted: torch.Tensor, vocabulary: int | None = None
) -> torch.Tensor:
    """Log-probabilities at the predicted positions, (N, V), in fp32 at least; of the first ``vocabulary`` tokens."""
    logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    logits = logits[:, logits_before(model) : -1][predicted.to(model.device)][:, :vocabulary]
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def weight_change(base_model: PreTrainedModel, model: PreTrainedModel) -> dict[str, float]:
    """Relative L2 change of the weights, ‖θ − θ_base‖ / ‖θ_base‖, per layer.

    Layers are ``embeddings``, ``block 0`` ..., ``final norm`` and ``head`` (a tied head is part of the
    embeddings; one that was tied in the base model alone is compared with what it was tied to). An adapter in the
    weights (LoRA, (IA)³) that is active counts as the change that merging it would make; a prompt before the input
    changes no weight. Heads that tasks add are left out, for nothing was pretrained in them.

    Args:
        base_model: The reference.
        model: The same architecture, possibly within a peft wrapper.

    Returns:
        The change by layer, in the model's order.
    """
    squares: dict[str, tuple[float, float]] = {}
    for _, layer, reference, tuned in compared_weights(base_model, model):
        change = (tuned - reference).square().sum().item()
        before = squares.get(layer, (0.0, 0.0))
        squares[layer] = before[0] + change, before[1] + reference.square().sum().item()
    if mesh_of(base_model.parameters()) is not None:
        summed = total(torch.tensor(list(squares.values()), dtype=torch.float64)).tolist()
        squares = {layer: (change, norm) for layer, (change, norm) in zip(squares, summed, strict=True)}
    return {
        layer: math.sqrt(change / norm) if norm else (math.inf if change else 0.0)
        for layer, (change, norm) in squares.items()
    }


def fisher_distance(base_model: PreTrainedModel, model: PreTrainedModel, fisher: DiagonalFisher) -> float:
    """Distance of the weights in the base model's Fisher information, ½ Σ_i F_i (θ_i − θ_base,i)².

    To second order it is KL(base‖tuned) on sequences like those that F is a mean over (Martens 2020, arXiv 1412.1193),
    here in nats per predicted token. Adapters count as the change that merging them would make, as in
    :func:`weight_change`.
    """
    from forgetting.analysis.laws import second_order_rise

    before, after = {}, {}
    for name, _, reference, tuned in compared_weights(base_model, model):
        before[name], after[name] = reference, tuned
    if mesh_of(base_model.parameters()) is None:
        return second_order_rise(before, after, fisher).per_token
    held = replace(fisher, values={name: local(value) for name, value in fisher.values.items()})
    own = second_order_rise(before, after, held).per_token
    return float(total(torch.tensor(own, dtype=torch.float64)))


def compared_weights(
    base_model: PreTrainedModel, model: PreTrainedModel
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Pair the weights of a base model and a tuned one, as :func:`weight_change` compares them.

    Yields:
        Name in the base model, layer (:func:`forgetting.models.layer_name`), base value and tuned value, both in
        float64 on the base model's device; in the model's order, a tied parameter once. Of sharded models, the rows
        that this process holds.
    """
    tuned = _effective_weights(model)
    references = {name: (layer_name(name, base, base_model), base) for name, base in base_model.named_parameters()}
    for name, base in base_model.named_parameters(remove_duplicate=False):
        if name in tuned:  # tied in the base model, and here a parameter of its own
            references.setdefault(name, ("head", base))
    for name, (layer, base) in references.items():
        if not name.startswith("heads."):
            reference = local(base.detach())
            yield name, layer, reference.double(), local(tuned[name]).to(reference.device).double()


def _effective_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters by the name that they have without adapters, as they were if active adapters were merged."""
    base = getattr(model, "get_base_model", lambda: model)()
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "base_layer")}
    inside = tuple(f"{name}." for name in adapted)
    weights = {name: p.detach() for name, p in base.named_parameters() if not name.startswith(inside)}
    for name, module in adapted.items():
        layer = module.base_layer
        if not (module.disable_adapters or module.merged):
            merged = copy.deepcopy(module)  # one layer at a time: unmerging would round
            merged.merge()
            layer = merged.base_layer
        weights.update({f"{name}.{local}": parameter.detach() for local, parameter in layer.named_parameters()})
    return weights
