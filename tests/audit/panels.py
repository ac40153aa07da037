"""Capabilities with outcomes of one's choice, in lm-eval's shape, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forgetting.audit.items import Measured, Panel, measured
from forgetting.audit.run import Audit, audit_samples
from forgetting.audit.samples import write_samples
from forgetting.audit.schema import Settings


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(
    doc_id: int, outcome: float, *, prompt: str | None = None, metric: str = "acc", **doc: Any
) -> dict[str, Any]:
    """A two-choice item whose right answer is `` yes``."""
    prompt = f"question {doc_id}:" if prompt is None else prompt
    right = outcome > 0.5
    log_probs = ["-1.0", "-2.0"] if right else ["-2.5", "-1.5"]
    return {
        "doc_id": doc_id,
        "doc": {"question": prompt, **doc},
        "target": "0",
        "arguments": {f"gen_args_{k}": {"arg_0": prompt, "arg_1": choice} for k, choice in enumerate((" yes", " no"))},
        "resps": [[[value, str(right)]] for value in log_probs],
        "filtered_resps": [[value, "False"] for value in log_probs],
        "filter": "none",
        "metrics": [metric],
        "doc_hash": digest(prompt + repr(doc)),
        "prompt_hash": digest(prompt),
        "target_hash": digest("0"),
        metric: float(outcome),
    }


def capability(
    name: str, outcomes: Sequence[float] | np.ndarray, *, chance: float = 0.5, higher: bool = True, **options: Any
) -> Measured:
    metric = options.get("metric", "acc")
    rows = [(name, record(k, float(outcome), **options)) for k, outcome in enumerate(outcomes)]
    return measured(name, rows, metric, chance=chance, higher_is_better=higher, version="1.0")


def panel(**outcomes: Any) -> Panel:
    return {name: capability(name, values) for name, values in outcomes.items()}


def flipped(n: int, right: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    """Base and tuned outcomes: of ``right`` right items ``lost`` become wrong, of the others ``gained`` right."""
    base = (np.arange(n) < right).astype(float)
    tuned = base.copy()
    tuned[:lost] = 0
    tuned[n - gained :] = 1
    return base, tuned


def made(tmp_path: Path) -> Audit:
    base, tuned = flipped(60, right=50, lost=20, gained=3)
    write_samples(panel(a=base, b=np.ones(60)), tmp_path / "x", "x", "2026-01-31T12-00-00.000000")
    write_samples(panel(a=tuned, b=np.ones(60)), tmp_path / "y", "y", "2026-01-31T12-00-00.000000")
    return audit_samples(tmp_path / "x", tmp_path / "y", Settings())


def hostile_audit(tmp_path: Path, texts: Sequence[str]) -> Audit:
    """An audit in which models, capabilities, prompts and notes are these texts; of each, two items flip."""
    audit = made(tmp_path)
    pairs = []
    for number, text in enumerate(texts):
        base, tuned = flipped(4, right=3, lost=1, gained=1)
        sides = [capability(text, x, prompt=text) for x in (base, tuned)]
        pairs.append(type(audit.pairs[0])(*sides, None))
        audit.verdict.capabilities[number % 2].name = text
    audit.verdict.tuned.name, audit.verdict.why, audit.verdict.notes = texts[0], texts[1], list(texts)
    return Audit(audit.verdict, pairs)
