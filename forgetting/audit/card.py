"""``model_card.md``: the record of a fine-tune that a regulator or a colleague would ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from forgetting.audit.schema import Side, Verdict
from forgetting.audit.tables import capability_table, change
from forgetting.report.cells import number
from forgetting.report.style import plain
from forgetting.report.tables import markdown

UNKNOWN = "not said in the model's files"
OWN_ITEMS = (
    "a fifth of the file that was given, drawn by seed 0; `forgetting run --data` of the same file does not train on "
    "them, and a fine-tune that was made otherwise may have"
)
MEANING = {
    "REGRESSED": "something that the base model could do was lost, beyond chance",
    "RETAINED": "losses above the margins are ruled out",
    "INCONCLUSIVE": "there are not enough items to tell",
}


def _text(value: Any) -> str:
    """One line that is no Markdown."""
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", plain(value))


def _facts(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"- **{name}**: {_text(value)}" for name, value in pairs]


def _size(side: Side) -> str:
    known = f"{side.parameters:,} parameters" if side.parameters else ""
    return ", ".join(part for part in (side.architecture or "", known) if part) or UNKNOWN


def _named(side: Side, key: str) -> str:
    value = side.card.get(key)
    return UNKNOWN if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def model_card(verdict: Verdict) -> str:
    """Return the card, in Markdown; what is not known is said to be.

    Base, data, recipe and cost come from the files of the tuned model (its README's header, peft's configuration,
    the trainer's state); what was kept and lost comes from the audit.
    """
    base, tuned, settings = verdict.base, verdict.tuned, verdict.settings
    table = capability_table(verdict)
    recipe = {**(tuned.adapter or {}), **tuned.training}
    keys = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
    method = {key: recipe[key] for key in keys if key in recipe}
    cost = {key: recipe[key] for key in ("max_steps", "total_flos", "num_input_tokens_seen") if key in recipe}
    training = {key: value for key, value in tuned.training.items() if key not in cost}
    sections = [
        f"# Audit record of {_text(tuned.name)}",
        "",
        f"**{verdict.verdict}**: {MEANING[verdict.verdict]}. {_text(verdict.why)}",
        "",
        "## Model",
        *_facts(
            [
                ("fine-tune", tuned.name),
                (
                    "form",
                    {"model": "full weights", "adapter": "adapter on the base", "samples": "lm-eval logs"}[tuned.kind],
                ),
                ("size", _size(tuned)),
                ("licence", _named(tuned, "license")),
                ("SHA-256", tuned.sha256),
                ("base", base.name),
                ("base, size", _size(base)),
                ("base, licence", _named(base, "license")),
                ("base, SHA-256", base.sha256),
                (
                    "base that the fine-tune's files name",
                    tuned.card.get("base_model") or recipe.get("base_model_name_or_path") or UNKNOWN,
                ),
            ]
        ),
        "",
        "## Data",
        *_facts([("fine-tuned on", _named(tuned, "datasets"))]),
        "",
        "## Recipe and cost",
        *_facts(
            [
                ("method", json.dumps(method) if method else "full fine-tuning" if tuned.kind == "model" else UNKNOWN),
                ("training", json.dumps(training) if training else UNKNOWN),
                ("cost", json.dumps(cost) if cost else UNKNOWN),
            ]
        ),
        "",
        "## What it was tuned for",
        *_own(verdict),
        "",
        "## What was kept and lost",
        "",
        markdown(replace(table, caption=_text(table.caption))),
        *[f"- {_text(f'{record.name}: {record.why}')}" for record in verdict.capabilities],
        "",
        "## How it was measured",
        *_facts(
            [
                (
                    "items",
                    f"{sum(record.n for record in verdict.capabilities)} in {len(verdict.capabilities)} capabilities",
                ),
                ("prompts, SHA-256", verdict.prompts_sha256),
                *((f"{name.replace('_', ' ')}, SHA-256", value) for name, value in verdict.inputs_sha256.items()),
                (
                    "margins",
                    f"{100 * settings.margin:g} points of the mean, {100 * settings.worst:g} of any capability, "
                    f"{100 * settings.rise:g}% of a perplexity's bits",
                ),
                ("error rate", f"about {settings.alpha:g} of either false verdict"),
                ("sequential", f"{len(verdict.looks)} looks" if verdict.looks else "no"),
                ("code", json.dumps({key: verdict.code.get(key) for key in ("package", "git", "sha256", "libraries")})),
                ("command", " ".join(map(str, verdict.code.get("command", [])))),
                ("date", verdict.code.get("started", UNKNOWN)),
                ("seconds", number(verdict.seconds)),
            ]
        ),
        *_facts([("note", note) for note in verdict.notes]),
        "",
        "## Limits",
        "- The verdict is on these capabilities and items, scored with these prompts; nothing is said of what was not "
        "asked.",
        "- A difference here can be a change of format as well as of knowledge.",
        "",
    ]
    return "\n".join(sections)


def _own(verdict: Verdict) -> list[str]:
    if verdict.own is None:
        return ["- No data of the own task were given to the audit."]
    own = verdict.own
    share = own.metric != "perplexity"
    contexts = "" if own.clusters is None else f" in {own.clusters} contexts"
    scale, digits = (100.0, 1) if share else (1.0, 3)
    return _facts(
        [
            ("task", f"{own.name} ({own.metric}, {own.n} items{contexts})"),
            ("base", number(scale * own.base, digits)),
            ("tuned", number(scale * own.tuned, digits)),
            ("difference", change(own.difference, scale)),
            ("items", OWN_ITEMS),
        ]
    )
