"""``report.html``: one self-contained page, made of a verdict and its items; every text in it is escaped.

The one script is a constant that shows and hides flips; the page's policy names it by its hash, so that no other script
runs in it, whatever the prompts and the models' answers hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import forgetting.report
from forgetting.audit.card import MEANING, OWN_ITEMS
from forgetting.audit.schema import Verdict
from forgetting.audit.sections import sections
from forgetting.audit.tables import capability_table
from forgetting.report.cells import number
from forgetting.report.style import plain

SHOWN = 100
"""Flips of a capability, each way, that the page holds; all are in ``items.parquet``."""

SCRIPT = """
const articles = Array.from(document.querySelectorAll("article.flip"));
const controls = ["capability", "direction"].map(id => document.getElementById(id));
const word = document.getElementById("word");
function show() {
  const [capability, direction] = controls.map(control => control.value);
  const text = word.value.toLowerCase();
  let shown = 0;
  for (const article of articles) {
    const fits = (!capability || article.dataset.capability === capability)
      && (!direction || article.dataset.flip === direction)
      && (!text || article.textContent.toLowerCase().includes(text));
    article.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = shown + " of " + articles.length + " shown";
}
controls.forEach(control => control.addEventListener("change", show));
word.addEventListener("input", show);
document.getElementById("filters").hidden = false;
show();
"""


def render_page(verdict: Verdict, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page's HTML.

    Args:
        verdict: What ``verdict.json`` holds.
        rows: Of ``items.parquet``: those that flipped are shown with their texts.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [Path(__file__).parent, Path(forgetting.report.__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    flips, total = _flips(rows)
    return environment.get_template("audit.html").render(
        verdict=verdict,
        title=f"{plain(verdict.tuned.name)} against {plain(verdict.base.name)}",
        own_items=OWN_ITEMS,
        meaning=MEANING[verdict.verdict],
        table=capability_table(verdict),
        forest=_forest(verdict),
        flips=flips,
        flips_total=total,
        sections=sections(verdict),
        facts=_facts(verdict),
        script=SCRIPT,
        script_hash=digest,
    )


def _forest(verdict: Verdict) -> dict[str, Any] | None:
    """Differences with their intervals, on one scale in points, as positions of a drawing 620 wide."""
    records = [record for record in verdict.capabilities if record.p_margin is not None and record.rise is None]
    found = [(plain(record.name), record.verdict, record.difference) for record in records]
    if verdict.mean is not None:
        found.append((f"mean of {verdict.mean.capabilities}", None, verdict.mean.difference))
    if not found:
        return None
    ends = [end for _, _, d in found for end in (d.low, d.high, d.value) if end is not None]
    low, high = min(*ends, -2 * verdict.settings.margin), max(*ends, 2 * verdict.settings.margin)
    left, width = 230.0, 370.0

    def x(value: float) -> float:
        return round(left + width * (value - low) / (high - low), 1)

    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 8)
    ticks = [k * step for k in range(-60, 61) if low <= k * step <= high]
    return {
        "height": 24 * len(found) + 34,
        "zero": x(0),
        "band": (x(-verdict.settings.margin), x(verdict.settings.margin)),
        "ticks": [(x(tick), number(100 * tick, 0)) for tick in ticks],
        "rows": [
            {
                "name": name if len(name) <= 27 else f"{name[:16]}…{name[-10:]}",
                "verdict": call or "mean",
                "y": 24 * place + 14,
                "low": x(difference.low if difference.low is not None else difference.value),
                "high": x(difference.high if difference.high is not None else difference.value),
                "value": x(difference.value),
            }
            for place, (name, call, difference) in enumerate(found)
        ],
    }


def _flips(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The flips that are shown, ordered by how sure the tuned model is of its new answer, and the number of all."""
    kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
    flipped = [row for row in rows if row["flip"]]
    for name in dict.fromkeys(str(row["capability"]) for row in flipped):
        kept |= {(name, "lost"): [], (name, "gained"): []}
    for row in flipped:
        kept[str(row["capability"]), str(row["flip"])].append(_flip(row))
    for group in kept.values():
        group.sort(key=lambda flip: -float(flip["shift"]))
    return [flip for group in kept.values() for flip in group[:SHOWN]], len(flipped)


def _flip(row: Mapping[str, Any]) -> dict[str, Any]:
    """One flip: its choices with both models' log-probabilities, and how far the answer's margin moved, nats."""
    choices, base, tuned = (list(row[key]) for key in ("choices", "base_log_probs", "tuned_log_probs"))
    scored = len(choices) == len(base) == len(tuned)
    lines = [
        {
            "text": choice,
            "base": number(base[place], 2) if scored else "",
            "tuned": number(tuned[place], 2) if scored else "",
            "right": choice == row["target"],
            "marks": " ".join(
                label
                for label, answer in (
                    ("right", row["target"]),
                    ("base", row["base_answer"]),
                    ("tuned", row["tuned_answer"]),
                )
                if choice == answer
            ),
        }
        for place, choice in enumerate(choices)
    ]
    shift = 0.0
    if scored and row["target"] in choices and len(choices) > 1:
        right = choices.index(row["target"])
        margins = [logs[right] - max(log for k, log in enumerate(logs) if k != right) for logs in (base, tuned)]
        shift = abs(margins[1] - margins[0])
    return {**row, "lines": lines, "shift": shift, "direction": "1→0" if row["flip"] == "lost" else "0→1"}


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    """Where the numbers were made, and of what."""
    code = verdict.code
    git = code.get("git") or {}
    libraries = code.get("libraries") or {}
    settings = verdict.settings
    facts = [
        ("base", f"{verdict.base.name} ({verdict.base.kind}), SHA-256 {verdict.base.sha256}"),
        ("tuned", f"{verdict.tuned.name} ({verdict.tuned.kind}), SHA-256 {verdict.tuned.sha256}"),
        ("prompts", f"SHA-256 {verdict.prompts_sha256}"),
        *((name.replace("_", " "), f"SHA-256 {value}") for name, value in verdict.inputs_sha256.items()),
        (
            "settings",
            f"error rate {settings.alpha:g}, margin {100 * settings.margin:g} points of the mean and "
            f"{100 * settings.worst:g} of any capability, a rise of {100 * settings.rise:g}% of a perplexity's bits, "
            f"power {settings.power:g}",
        ),
        ("command", " ".join(map(str, code.get("command", [])))),
        ("package", f"{code.get('package')}, git {git.get('commit')}{' (changed)' if git.get('dirty') else ''}"),
        ("package, SHA-256", str(code.get("sha256"))),
        ("libraries", ", ".join(f"{name} {version}" for name, version in libraries.items() if version)),
        ("begun", f"{code.get('started')}, {number(verdict.seconds, 0)} seconds"),
    ]
    return [(name, plain(value)) for name, value in facts]
