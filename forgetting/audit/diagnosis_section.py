"""A diagnosis in a verdict, as a section of the report: from ``verdict.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forgetting.audit.parts import Bars, Section, bars_of, dash, percent
from forgetting.report.cells import NONE, Table
from forgetting.report.style import plain


def diagnosis_section(diagnosis: Mapping[str, Any]) -> Section:
    """Layers in one table and drawing, then what practice and a prompt bring back.

    Args:
        diagnosis: :class:`~forgetting.audit.diagnosis.Diagnosis` as JSON.
    """
    tables, bars = [], []
    if layers := diagnosis["layers"]:
        tables.append(_layers(layers, diagnosis["tokens"]))
        bars += _drawings(layers)
    level = f"{100 * diagnosis['level']:g}%"
    if relearned := diagnosis["relearned"]:
        tables.append(_relearned(relearned, level))
    if prompted := diagnosis["prompted"]:
        tables.append(_prompted(prompted, level))
    facts = [(plain(name), _said(name, diagnosis)) for name in diagnosis["lost"]]
    lead = (
        "Whether what was lost is gone: what a few steps of practice, or a prompt, bring back was not erased. The base "
        "model, which lost nothing, is the control: what they add to it is learned, not recovered."
    )
    if not facts:
        lead = "No capability was lost beyond chance: there is nothing to win back."
    return Section("diagnosis", "Diagnosis", lead, tables, bars, None, facts)


def _layers(layers: Sequence[Mapping[str, Any]], tokens: int) -> Table:
    rows = [
        [
            plain(layer["layer"]),
            dash(layer["cka"], 4),
            dash(layer["relative"], 4),
            percent(layer["share"]),
            dash(layer["predicted_kl"], 5),
        ]
        for layer in layers
    ]
    return Table(
        "layers",
        f"Base against tuned by layer: linear CKA of the hidden states after it, on {tokens:,} tokens (1: the same but "
        "for rotation and scale; the last block's after the final norm); change of the weights ‖Δ‖ / ‖base‖; share of "
        "the whole ‖Δ‖², %; Fisher-weighted change ½ΔθᵀFΔθ, nats per token.",
        ["layer", "CKA", "relative", "share", "½ΔθᵀFΔθ"],
        rows,
    )


def _drawings(layers: Sequence[Mapping[str, Any]]) -> list[Bars]:
    drawn = []
    moved = {layer["layer"]: 1 - layer["cka"] for layer in layers if layer["cka"] is not None}
    if moved:
        drawn.append(bars_of("Change of the hidden states by layer, 1 − CKA", moved, 4))
    for key, title, digits in (
        ("relative", "Change of the weights by layer, ‖Δ‖ / ‖base‖", 4),
        ("predicted_kl", "Fisher-weighted change by layer, ½ΔθᵀFΔθ, nats per token", 5),
    ):
        if known := {layer["layer"]: layer[key] for layer in layers if layer[key] is not None}:
            drawn.append(bars_of(title, known, digits))
    return drawn


def _share(row: Mapping[str, Any]) -> str:
    """The recovered share with its limits, %."""
    if row["recovered"] is None:
        return NONE
    limits = "" if row["low"] is None else f" [{percent(row['low'])}, {percent(row['high'])}]"
    return percent(row["recovered"]) + limits


def _relearned(relearned: Sequence[Mapping[str, Any]], level: str) -> Table:
    rows = [
        [
            plain(found["capability"]),
            plain(found["practice"]),
            f"{found['learning_rate']:g}",
            str(point["step"]),
            dash(found["base"], 3),
            dash(point["score"], 3),
            _share(point),
            dash(point["control"], 3),
        ]
        for found in relearned
        for point in found["points"]
    ]
    return Table(
        "relearned",
        "Practice of a copy of the tuned model: score after so many steps, the share of the loss that is undone, % "
        f"with its {level} interval over items (a dash: the loss on these is not certain), and the base's score "
        "after the same steps. No item that is scored is practised.",
        ["capability", "practice", "rate", "step", "base", "score", "recovered", "base, after"],
        rows,
    )


def _prompted(prompted: Sequence[Mapping[str, Any]], level: str) -> Table:
    rows = [
        [
            plain(row["capability"]),
            str(row["n"]),
            *(dash(row[key], 3) for key in ("base", "tuned", "base_prompted", "tuned_prompted")),
            _share(row),
        ]
        for row in prompted
    ]
    return Table(
        "prompted",
        f"With {prompted[0]['shots']} solved items before each item (prompted): scores, and the share of the loss that "
        f"the prompt undoes, % with its {level} interval over items.",
        ["capability", "items", "base", "tuned", "base prompted", "tuned prompted", "recovered"],
        rows,
    )


def _said(name: str, diagnosis: Mapping[str, Any]) -> str:
    """What came back of one capability, in a sentence."""
    said = []
    for found in diagnosis["relearned"]:
        if found["capability"] == name:
            last = found["points"][-1]
            said.append(
                f"after {last['step']} steps of {found['practice']} {_share(last)} % of the loss is undone (the base "
                f"model goes from {dash(found['base'], 3)} to {dash(last['control'], 3)})"
            )
    for row in diagnosis["prompted"]:
        if row["capability"] == name:
            said.append(
                f"with {row['shots']} solved items before each item {_share(row)} % (the base model goes from "
                f"{dash(row['base'], 3)} to {dash(row['base_prompted'], 3)})"
            )
    return "; ".join(said) or "could not be looked at, see the notes"
