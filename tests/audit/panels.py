"""Capabilities with outcomes of one's choice, in lm-eval's shape, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from forgetting.audit.items import Measured, Panel, measured


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
