"""Beside the verdict: how far the models are apart (drift, weights), what they write, and what would have helped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.audit.load import AuditInput
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.audit.behaviour import SafetyPrompt
    from forgetting.audit.schema import Verdict
    from forgetting.evaluation.drift import DriftMeter
    from forgetting.fisher import DiagonalFisher

DOCUMENTS = 128
"""Of general text; as many again for the Fisher information and the slopes."""
SAMPLES = 32
LENGTH = 128
"""Tokens of a window, and of a sampled document."""
TOKENS = 20_000
PROMPTS = 64
"""Of the own task, that both models continue."""


@dataclass
class Extras:
    """Parts of ``verdict.json``, and what could not be measured.

    Attributes:
        drift: ``texts`` (:class:`~forgetting.audit.drift.TextKL` by name), ``weights``
            (:class:`~forgetting.audit.weights.WeightChange`), ``bits_per_byte``, each ``None`` where not measured.
        behaviour: ``outputs`` (:class:`~forgetting.audit.behaviour.Outputs`) after the own task's prompts, ``safety``
            (:class:`~forgetting.audit.behaviour.Safety`) on the user's, each ``None`` where there are none.
        advice: :class:`~forgetting.audit.advice.Advice`, and in ``reliability`` what is known of each kind of edit.
        notes: One line per thing that could not be measured, with the reason.
    """

    drift: dict[str, Any] | None = None
    behaviour: dict[str, Any] | None = None
    advice: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def as_json(value: Any) -> Any:
    """Dataclasses as mappings, and what is not finite as ``None``: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def general_documents(given: AuditInput, source: str | None) -> list[str]:
    """Return text like that which the base was pretrained on; none where no source is known.

    Args:
        given: The models.
        source: ``micro``, a text or JSONL file, or a hub data set; of an embedded model, its own by default.

    Raises:
        UsageError: if it cannot be read.
    """
    from forgetting.config import PretrainingConfig
    from forgetting.models import EMBEDDED
    from forgetting.tasks.pretraining import OWN, load_pretraining

    if source is None and given.base.name not in EMBEDDED:
        return []
    config = PretrainingConfig(source=source, documents=4, held_out_documents=2 * DOCUMENTS, max_length=LENGTH)
    text = load_pretraining(config, given.base.name, given.base.model, given.base.tokenizer, None)
    return list(text.held_out[OWN])


@dataclass(frozen=True)
class Wanted:
    """What :func:`measure_extras` is to do, checked and read.

    Attributes:
        documents: General text; none where no source is known.
        prompts: That should be refused or answered.
        advise: Score mixtures of both models' weights on the own task and the suite (each a whole scoring).
        save_best: Folder for the interpolation that the advice chooses.
        diagnose: Compare hidden states, and try to win back what was lost (:mod:`~forgetting.audit.diagnosis`).
        cluster: Field of the suite's items that names the context they share.
    """

    documents: list[str]
    prompts: list[SafetyPrompt] | None
    advise: bool
    diagnose: bool
    save_best: Path | None
    cluster: str | None


def prepare_extras(
    given: AuditInput,
    *,
    text: str | None = None,
    prompts: Path | None = None,
    advise: bool = False,
    diagnose: bool = False,
    save_best: Path | None = None,
    cluster: str | None = None,
) -> Wanted:
    """Check and read all that was asked for, before anything is scored: a mistake must not cost a finished verdict.

    Args:
        given: Both models, the suite, and the own task.
        text: Source of general text, see :func:`general_documents`.
        prompts: JSONL of prompts that should be refused or answered (:func:`~forgetting.audit.behaviour.load_prompts`).
        advise: See :class:`Wanted`.
        diagnose: The same.
        save_best: The same.
        cluster: The same.

    Raises:
        UsageError: if a file cannot be used; if advice is asked for without an own task, with too few items to choose
            on one half and judge on the other, or of models whose weights cannot be mixed.
    """
    from forgetting.audit.advice import check_empty
    from forgetting.audit.behaviour import load_prompts
    from forgetting.audit.edits import check_mixable

    asked = None if prompts is None else load_prompts(prompts)
    if save_best is not None:
        check_empty(save_best)
    if diagnose and not given.same_tokenizer:
        raise UsageError("--diagnose: the models' tokenizers differ, and their hidden states are of other tokens")
    if advise:
        if given.own is None:
            raise UsageError("--advise: needs the own task, to say what a mitigation would have cost; give --data")
        if not given.same_tokenizer:
            raise UsageError("--advise: the models' tokenizers differ, and a mixture of their weights has none")
        capabilities = given.suite.capabilities()
        sizes = {"the own task's test split": len(given.own.test), **{each.name: each.n for each in capabilities}}
        if few := [name for name, n in sizes.items() if n < 2]:
            raise UsageError(f"--advise: {few[0]} has {sizes[few[0]]} items; it needs 2, to choose on one half")
        if not any(each.higher_is_better for each in capabilities):
            raise UsageError("--advise: the suite has no capability where more is better; add one, such as micro")
        check_mixable(given.base.model, given.tuned.model)
    return Wanted(general_documents(given, text), asked, advise, diagnose, save_best, cluster)


def input_digests(given: AuditInput, wanted: Wanted | None) -> dict[str, str]:
    """SHA-256 of what there is of texts beside the suite's: ``own_data``, ``general_text``, ``safety_prompts``."""
    texts: dict[str, list[Any]] = {}
    if given.own is not None:
        texts["own_data"] = [[item.prompt, item.completion, list(item.choices or ())] for item in given.own.test]
    if wanted is not None:
        texts["general_text"] = list(wanted.documents)
        texts["safety_prompts"] = [[prompt.prompt, prompt.kind] for prompt in wanted.prompts or ()]
    return {
        name: hashlib.sha256(json.dumps(content).encode()).hexdigest() for name, content in texts.items() if content
    }


def add_extras(
    verdict: Verdict, given: AuditInput, wanted: Wanted, say: Callable[[str], None] = lambda doing: None
) -> None:
    """Measure (:func:`measure_extras`) into a verdict, which is changed: parts, notes, and seconds."""
    begun = time.perf_counter()
    extras = measure_extras(given, wanted, say)
    verdict.drift, verdict.behaviour, verdict.advice = extras.drift, extras.behaviour, extras.advice
    if wanted.diagnose:
        _diagnose(verdict, given, wanted, extras, say)
    verdict.notes += extras.notes
    verdict.seconds += time.perf_counter() - begun


def measure_extras(given: AuditInput, wanted: Wanted, say: Callable[[str], None] = lambda doing: None) -> Extras:
    """Measure drift and weight change, and what else is wanted; what cannot be measured becomes a note.

    Args:
        given: Both models, the suite, and the own task.
        wanted: See :func:`prepare_extras`.
        say: Told what is being done.
    """
    from forgetting.audit.edits import check_weights

    found = Extras()
    documents = wanted.documents
    half = (len(documents) + 1) // 2  # drift is measured on one half; Fisher information and slopes are of the other
    read, other = documents[:half], documents[half:]
    try:
        spoiled = check_weights(given.base.model, given.tuned.model)
        problem = None if spoiled is None else f"{spoiled} of the tuned model has values that are not finite"
    except UsageError as error:
        problem = str(error)
    if problem is not None:
        found.notes.append(f"Weights are not compared: {problem}.")
    say("drift")
    fisher = _fisher(given, other, found) if problem is None else None
    with _noted(found, "Drift is not measured"):
        found.drift = _drift(given, read, problem is None, fisher, found)
    if given.own is not None or wanted.prompts:
        say("what both write")
        with _noted(found, "What both models write is not compared"):
            found.behaviour = _behaviour(given, wanted.prompts, found)
    if wanted.advise and problem is None:
        with _noted(found, "No advice"):
            found.advice = _advice(given, fisher, other, wanted, found, say)
    return found


def _diagnose(verdict: Verdict, given: AuditInput, wanted: Wanted, found: Extras, say: Callable[[str], None]) -> None:
    """Diagnose into a verdict; without general text, on the base's own samples."""
    from forgetting.audit.diagnosis import diagnose, lost_capabilities
    from forgetting.tasks.pretraining import sample_documents

    base = given.base
    with _noted(found, "No diagnosis"):
        texts = wanted.documents or sample_documents(
            base.model, base.tokenizer, 2 * SAMPLES, max_length=LENGTH, seed=1, asked_by="--diagnose without --text"
        )
        half = (len(texts) + 1) // 2
        weights = (found.drift or {}).get("weights") or {}
        verdict.diagnosis = as_json(
            diagnose(
                given,
                lost_capabilities(verdict),
                (texts[:half], texts[half:]),
                changes=weights.get("layers", ()),
                length=LENGTH,
                cluster=wanted.cluster,
                level=1 - verdict.settings.alpha,
                note=found.notes.append,
                say=say,
            )
        )


@contextmanager
def _noted(found: Extras, what: str) -> Iterator[None]:
    """Make a note of what cannot be computed (values that are not finite, say): the verdict stands without it."""
    try:
        yield
    except (UsageError, ValueError, ArithmeticError) as error:
        found.notes.append(f"{what}: {error}.")


def _fisher(given: AuditInput, documents: Sequence[str], found: Extras) -> DiagonalFisher | None:
    from forgetting.audit.weights import general_fisher

    if not documents:
        return None
    try:
        return general_fisher(given.base.model, given.base.tokenizer, list(documents), max_length=LENGTH)
    except ValueError as error:  # a layer that has no rule
        found.notes.append(f"No Fisher information: {error}.")
        return None


def _drift(
    given: AuditInput, documents: list[str], comparable: bool, fisher: DiagonalFisher | None, found: Extras
) -> dict[str, Any]:
    from forgetting.audit.drift import GENERAL, audit_drift, audit_meter, bits_per_byte
    from forgetting.audit.weights import audit_weights

    general = {GENERAL: documents} if documents else {}
    texts, bits = None, None
    base, tuned = given.base, given.tuned
    if given.same_tokenizer:
        options: dict[str, Any] = {"max_length": LENGTH, "max_tokens": TOKENS, "batch_size": given.batch_size}
        meter: DriftMeter | None = None
        try:
            meter = audit_meter(base.model, base.tokenizer, general, samples=SAMPLES, **options)
        except UsageError as error:
            found.notes.append(f"No drift on the base's own samples: {error}.")
            if general:
                meter = audit_meter(base.model, base.tokenizer, general, samples=0, **options)
        if meter is not None:
            texts = audit_drift(meter, tuned.model, given.own.test if given.own else ())
    elif documents:
        sides = (base.model, base.tokenizer), (tuned.model, tuned.tokenizer)
        bits = bits_per_byte(*sides, documents, max_length=LENGTH, batch_size=given.batch_size)
    weights = None
    if comparable:
        kl = texts[GENERAL].mean if texts and GENERAL in texts else None
        weights = audit_weights(base.model, tuned.model, fisher=fisher, measured_kl=kl)
        if fisher is not None and weights.predicted_kl is None:
            found.notes.append(
                "½ΔθᵀFΔθ is not summed: the Fisher information lacks a parameter, such as an untied head."
            )
    return {"texts": as_json(texts), "bits_per_byte": as_json(bits), "weights": as_json(weights)}


def _behaviour(given: AuditInput, asked: list[SafetyPrompt] | None, found: Extras) -> dict[str, Any] | None:
    from forgetting.audit.behaviour import audit_outputs, audit_safety

    if not given.same_tokenizer:
        found.notes.append("What both models write is not compared: their tokenizers differ.")
        return None
    models = given.base.model, given.tuned.model, given.base.tokenizer
    prompts = list(dict.fromkeys(example.prompt for example in given.own.test))[:PROMPTS] if given.own else []
    return {
        "outputs": as_json(audit_outputs(*models, prompts, batch_size=given.batch_size)) if prompts else None,
        "safety": as_json(audit_safety(*models, asked, batch_size=given.batch_size)) if asked else None,
    }


def _advice(
    given: AuditInput,
    fisher: DiagonalFisher | None,
    documents: Sequence[str],
    wanted: Wanted,
    noted: Extras,
    say: Callable[[str], None],
) -> dict[str, Any]:
    from lm_eval.models.utils import resolve_max_length

    from forgetting.audit.advice import advise, save_best
    from forgetting.audit.edits import Change
    from forgetting.audit.reliability import load_reliability, told
    from forgetting.evaluation.scores import TaskScorer
    from forgetting.tasks.encode import encode_texts
    from forgetting.trainer import padded_batches

    assert given.own is not None  # checked before anything was measured
    base = given.base
    change = Change(base.model, given.tuned.model)
    longest = int(resolve_max_length(base.model.config, base.tokenizer))
    scorer = TaskScorer(given.own, base.tokenizer, batch_size=given.batch_size, max_length=longest)
    features = encode_texts(base.tokenizer, list(documents), LENGTH) if documents else []
    found = advise(
        change,
        lambda model: scorer.score(model).items,
        given.suite,
        base.tokenizer,
        fisher=fisher,
        general=padded_batches(features, base.tokenizer, given.batch_size) if features else (),
        batch_size=given.batch_size,
        cluster=wanted.cluster,
        own_contexts=given.own_contexts(wanted.cluster),
        progress=lambda done, total, name: say(f"advice {done + 1}/{total}, {name}"),
    )
    points = [as_json(point) | {"stands_for": point.stands_for} for point in found.points]
    saved = None
    if wanted.save_best is not None:
        with _noted(noted, "The best interpolation is not saved"):
            saved = str(save_best(change, base.tokenizer, found.best.alpha, wanted.save_best))
    measured = load_reliability()
    reliability = {kind: told(kind, measured) for kind in ("interpolation", "revert", "rank", "fisher", "replay")}
    return as_json(found) | {"points": points, "saved": saved, "reliability": reliability}
