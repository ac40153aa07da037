"""Where a fine-tune changed the model, and whether what it lost is gone or out of reach.

Layers: the CKA of both models' hidden states on general text, beside the change of the weights and ½ Σ F Δ², layer by
layer. Out of reach: what a few steps of practice, or a prompt, bring back was not erased (Zheng et al. 2025, arXiv
2501.13453; Kotha, Springer & Raghunathan 2023, arXiv 2309.10105). See :mod:`forgetting.audit.lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forgetting.audit.lost import GENERAL, OWN, LostItems, Prompted, Relearned
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.audit.load import AuditInput
    from forgetting.audit.schema import Verdict

Say = Callable[[str], None]

MOST_BYTES = 8 * 2**30
"""Memory that the products of CKA may take."""


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer, base against tuned.

    Attributes:
        layer: ``embeddings``, ``block 0`` ..., ``final norm``, ``head``.
        cka: Of the hidden states after it (:class:`~forgetting.evaluation.representations.LinearCKA`); of the last
            block after the final norm too. ``None`` of layers without a state of their own.
        relative, share, predicted_kl: Of :class:`~forgetting.audit.weights.LayerChange`; ``None`` where the weights
            cannot be compared.
    """

    layer: str
    cka: float | None
    relative: float | None
    share: float | None
    predicted_kl: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes:
        layers: In the model's order.
        tokens: Of the text that CKA is of; 0 where it was not measured.
        lost: Capabilities that were looked at.
        level: Of the intervals.
    """

    layers: tuple[LayerState, ...]
    tokens: int
    lost: tuple[str, ...]
    relearned: tuple[Relearned, ...]
    prompted: tuple[Prompted, ...]
    level: float


def lost_capabilities(verdict: Verdict) -> list[str]:
    """Return what has REGRESSED; where only the mean has, every judged share that fell."""
    lost = [record.name for record in verdict.capabilities if record.verdict == "REGRESSED"]
    if lost or verdict.verdict != "REGRESSED":
        return lost
    judged = [record for record in verdict.capabilities if record.verdict is not None and record.rise is None]
    return [record.name for record in judged if record.difference.value < 0]


def diagnose(
    given: AuditInput,
    lost: Sequence[str],
    texts: tuple[Sequence[str], Sequence[str]],
    *,
    changes: Sequence[Mapping[str, Any]],
    length: int,
    cluster: str | None,
    level: float,
    note: Say,
    say: Say = lambda doing: None,
) -> Diagnosis:
    """Diagnose a fine-tune; what cannot be measured becomes a note.

    Args:
        given: Both models, of one tokenizer, and the suite.
        lost: Capabilities to win back (:func:`lost_capabilities`).
        texts: Text like the base's pretraining: to compare hidden states on, and to practise.
        changes: Layers of :func:`~forgetting.audit.weights.audit_weights` as JSON; empty where weights differ in kind.
        length: Tokens of a text that are read.
        cluster: Field of the items that names the context they share.
        level: Of the intervals.
        note: Told what could not be measured.
        say: Told what is being done.
    """
    say("diagnosis, layers")
    cka, tokens = _cka(given, texts[0], length, note)
    relearned: list[Relearned] = []
    prompted: list[Prompted] = []
    if lost:
        asked = LostItems(given, lost, cluster)
        for practice in (GENERAL, OWN):
            say(f"diagnosis, practice of {practice}")
            try:
                relearned += asked.relearn(practice, asked.practice(practice, texts[1], length), level)
            except UsageError as error:
                note(f"No practice of {practice}: {error}.")
        say("diagnosis, prompt")
        try:
            prompted = asked.prompted(level, note)
        except UsageError as error:
            note(f"No recovery by a prompt: {error}.")
    return Diagnosis(_layers(changes, cka), tokens, tuple(lost), tuple(relearned), tuple(prompted), level)


def _cka(given: AuditInput, documents: Sequence[str], length: int, note: Say) -> tuple[dict[str, float], int]:
    """By layer, and the number of tokens."""
    from forgetting.evaluation.representations import layer_cka
    from forgetting.tasks.encode import encode_texts
    from forgetting.trainer import padded_batches

    config = given.base.model.config
    width, layers = int(getattr(config, "hidden_size", 0)), int(getattr(config, "num_hidden_layers", 0)) + 1
    if (size := 8 * (2 * width) ** 2 * layers) > MOST_BYTES:
        note(f"CKA is not measured: hidden states {width} wide would take {size / 2**30:.0f} GiB.")
        return {}, 0
    features = encode_texts(given.base.tokenizer, documents, length)
    try:
        table = layer_cka(
            given.base.model, given.tuned.model, padded_batches(features, given.base.tokenizer, given.batch_size)
        )
    except ValueError as error:
        note(f"CKA is not measured: {error}.")
        return {}, 0
    tokens = int(table["tokens"].iloc[0])
    if tokens < 10 * width:
        note(f"CKA is of {tokens} tokens, fewer than ten per feature ({width}): it is too near 1.")
    return dict(zip(table["layer"], table["cka"], strict=True)), tokens


def _layers(changes: Sequence[Mapping[str, Any]], cka: Mapping[str, float]) -> tuple[LayerState, ...]:
    known = {str(change["layer"]): change for change in changes}
    names = list(known) + [name for name in cka if name not in known]
    columns = ("relative", "share", "predicted_kl")
    return tuple(LayerState(name, cka.get(name), *(known.get(name, {}).get(key) for key in columns)) for name in names)
