"""ONE audit, readable top to bottom: score, compare, judge, and say what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.audit import looks
from forgetting.audit.compare import Pair, noise_floor, pair
from forgetting.audit.items import Panel, check_apart, check_field, paired, prompts_digest
from forgetting.audit.schema import Look, Noise, Settings, Side, Verdict
from forgetting.audit.verdict import Judgement, judge
from forgetting.provenance import code_state, source_digest

if TYPE_CHECKING:
    from forgetting.audit.load import AuditInput

Say = Callable[[str], None]
"""Called with what is being done."""


@dataclass(frozen=True)
class Audit:
    """A verdict, and the items that it was made of.

    Attributes:
        verdict: What ``verdict.json`` holds.
        pairs: Every capability of both models.
        noisy: Capability, task and number of the items that flipped in the A/A run.
    """

    verdict: Verdict
    pairs: list[Pair]
    noisy: frozenset[tuple[str, str, int]] = frozenset()


def audit_models(given: AuditInput, settings: Settings, say: Say = lambda doing: None) -> Audit:
    """Audit a fine-tune against its base model.

    Args:
        given: Both models, the suite, and the own task; see :func:`forgetting.audit.load.load_input`.
        settings: Margins and error rate; with ``sequential``, items are scored in parts until the verdict is decided.
        say: Told what is being done.

    Raises:
        UsageError: if items cannot be scored or paired, a task is part of two capabilities, or no document has the
            field that was named as the context.
    """
    from forgetting.audit.measure import measure, other_batch_size
    from forgetting.audit.sides import model_side, own_task

    begun = time.perf_counter()
    size = given.slots or given.batch_size
    sizes = {about.name: about.n for about in given.suite.capabilities()}
    check_apart(given.suite.tasks())
    steps = looks.parts(sizes) if settings.sequential else [{name: list(range(n)) for name, n in sizes.items()}]
    levels = looks.alphas(settings.alpha) if settings.sequential else [settings.alpha]
    base: Panel = {}
    tuned: Panel = {}
    again: Panel = {}
    made: list[Look] = []
    noise: dict[str, Noise] = {}
    for number, (step, level) in enumerate(zip(steps, levels, strict=True), start=1):
        if not step:
            continue
        part = given.suite.part(step) if settings.sequential else given.suite
        say(f"base model, look {number}" if settings.sequential else "base model")
        found = measure(given.base, part, size, given.cache)
        base = _joined(base, found)
        if not made:
            check_field(base, settings.cluster)
        if not again:  # of a sequential audit, the first part's items measure the noise
            say("base model again, at another batch size")
            again = measure(given.base, part, other_batch_size(size), given.cache)
        say(f"tuned model, look {number}" if settings.sequential else "tuned model")
        tuned = _joined(tuned, measure(given.tuned, part, size, given.cache))
        pairs = [pair(*sides, settings.cluster) for sides in paired(base, tuned)]
        noise = _noise(again, pairs)
        unseen = [name for name in sizes if name not in base]
        judgement = judge(pairs, settings, alpha=level, noise=noise, plan=False, unseen=unseen)
        seen = sum(len(each.base.items) for each in pairs)
        made.append(Look(items=seen, of=sum(sizes.values()), alpha=level, verdict=judgement.verdict))
        if judgement.verdict != "INCONCLUSIVE":
            break
    judgement = judge(
        pairs, settings, alpha=level, noise=noise, unseen=unseen
    )  # with the numbers of items that would decide
    say("own task and weights")
    notes = [] if given.same_tokenizer else ["The tokenizers differ: nothing is compared token by token."]
    if given.cache is not None and given.cache.found:
        notes.append("Scores of the same weights, prompts, code and precision that were kept are not computed again.")
    notes += _notes(pairs, settings.sequential and len(made) < len(steps))
    verdict = _verdict(
        judgement,
        settings,
        pairs,
        sides=(model_side(given, "base"), model_side(given, "tuned")),
        looks=made if settings.sequential else [],
        notes=notes,
        own=own_task(given, 1 - settings.alpha, settings.cluster),
        begun=begun,
    )
    return Audit(verdict, pairs, _noisy(again, pairs))


def audit_samples(base: Path, tuned: Path, settings: Settings) -> Audit:
    """Audit two models by lm-eval's logs of them; no model is loaded, and torch is not imported.

    Raises:
        UsageError: if the logs cannot be read, are not of the same items, hold a task in two capabilities, or have
            no field of the name that was given as the context.
    """
    from forgetting.audit.samples import read_samples

    begun = time.perf_counter()
    (first, first_digest), (second, second_digest) = read_samples(base), read_samples(tuned)
    check_apart({name: [item.task for item in side.items] for name, side in first.items()})
    check_field(first, settings.cluster)
    pairs = [pair(*sides, settings.cluster) for sides in paired(first, second)]
    sides = (
        Side(name=str(base), kind="samples", sha256=first_digest),
        Side(name=str(tuned), kind="samples", sha256=second_digest),
    )
    notes = ["Made from logs: there is no A/A run, so flips that are noise of arithmetic are counted as flips."]
    notes += _notes(pairs, False)
    return Audit(_verdict(judge(pairs, settings), settings, pairs, sides=sides, notes=notes, begun=begun), pairs)


def _verdict(
    judgement: Judgement,
    settings: Settings,
    pairs: list[Pair],
    *,
    sides: tuple[Side, Side],
    notes: list[str],
    begun: float,
    **more: Any,
) -> Verdict:
    return Verdict(
        verdict=judgement.verdict,
        why=judgement.why,
        items_to_decide=judgement.items_to_decide,
        settings=settings,
        base=sides[0],
        tuned=sides[1],
        capabilities=judgement.capabilities,
        mean=judgement.mean,
        notes=notes,
        prompts_sha256=prompts_digest({each.base.name: each.base for each in pairs}),
        code={**code_state(), "sha256": source_digest()},
        seconds=time.perf_counter() - begun,
        **more,
    )


def _joined(panel: Panel, more: Panel) -> Panel:
    """A panel with more items; capabilities in the order in which they came, items in that of their numbers."""
    joined = dict(panel)
    for name, found in more.items():
        if name in joined:
            items = sorted((*joined[name].items, *found.items), key=lambda item: item.key)
            sizes = len(joined[name].items), len(found.items)
            chance = (sizes[0] * joined[name].chance + sizes[1] * found.chance) / sum(sizes)
            found = replace(found, items=tuple(items), chance=chance)
        joined[name] = found
    return joined


def _noise(again: Panel, pairs: list[Pair]) -> dict[str, Noise]:
    floors: Mapping[str, Noise | None] = {
        each.base.name: noise_floor(each.base, again[each.base.name], each.tuned)
        for each in pairs
        if each.base.name in again
    }
    return {name: floor for name, floor in floors.items() if floor is not None}


def _noisy(again: Panel, pairs: list[Pair]) -> frozenset[tuple[str, str, int]]:
    found = set()
    for each in pairs:
        second = {item.key: item.outcome for item in again[each.base.name].items} if each.base.name in again else {}
        for item in each.base.items:
            if second.get(item.key, item.outcome) != item.outcome:
                found.add((each.base.name, *item.key))
    return frozenset(found)


def _notes(pairs: list[Pair], stopped: bool) -> list[str]:
    differing = sum(
        first.prompt_hash != second.prompt_hash
        for each in pairs
        for first, second in zip(each.base.items, each.tuned.items, strict=True)
    )
    notes = []
    if differing:
        notes.append(
            f"The prompts of {differing} items differ (a chat template, other shots): what is compared is model and "
            "prompt together."
        )
    if stopped:
        notes.append(
            "Stopped as soon as the verdict was decided. Intervals are those of a fixed number of items, and after a "
            "stop a little too narrow; the verdict's error rate is not affected."
        )
    return notes
