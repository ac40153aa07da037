"""Drift, behaviour, advice and diagnosis as tables and drawings of the report: from ``verdict.json`` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forgetting.audit.diagnosis_section import diagnosis_section
from forgetting.audit.parts import Scatter, Section, bars_of, dash, percent, with_limits
from forgetting.audit.schema import Verdict
from forgetting.report.cells import NONE, Table, number
from forgetting.report.style import plain


def sections(verdict: Verdict) -> list[Section]:
    """Return the parts that the verdict has data for."""
    found = []
    if verdict.drift is not None:
        found.append(_drift(verdict.drift))
    if verdict.behaviour is not None:
        found.append(_behaviour(verdict.behaviour))
    if verdict.advice is not None:
        found.append(_advice(verdict.advice))
    if verdict.diagnosis is not None:
        found.append(diagnosis_section(verdict.diagnosis))
    return found


def _drift(drift: Mapping[str, Any]) -> Section:
    tables, bars, leads = [], [], []
    if texts := drift.get("texts"):
        tables.append(_texts(texts))
    if bits := drift.get("bits_per_byte"):
        change = bits["difference"]
        leads.append(
            f"Bits per byte of general text: base {dash(bits['base'], 3)}, tuned {dash(bits['tuned'], 3)}, "
            f"difference {dash(change['mean'], 3)} [{dash(change['low'], 3)}, {dash(change['high'], 3)}]."
        )
    if weights := drift.get("weights"):
        relative = {row["layer"]: row["relative"] for row in weights["layers"] if row["relative"] is not None}
        bars.append(bars_of("Change of the weights by layer, ‖Δ‖ / ‖base‖", relative, 4))
        tables.append(_layers(weights))
        if weights["predicted_kl"] is not None:
            leads.append(
                f"½ΔθᵀFΔθ, F the diagonal of the base's Fisher information, foretells a KL of "
                f"{number(weights['predicted_kl'], 4)} nats per token on general text; "
                f"measured: {dash(weights['measured_kl'], 4)}."
            )
    return Section("drift", "Drift", " ".join(leads), tables, bars)


def _texts(texts: Mapping[str, Any]) -> Table:
    rows = [
        [
            plain(name).replace("_", " "),
            str(text["tokens"]),
            *(dash(text[key], 4) for key in ("mean", "median", "p99", "p999", "maximum")),
            percent(text["same_top"]),
            percent(text["rms_delta_p"]),
            *(dash(text[key], 3) for key in ("ce_base", "ce_tuned")),
        ]
        for name, text in texts.items()
    ]
    return Table(
        "drift",
        "KL(base‖tuned) per token, nats: mean, median, quantiles over tokens and maximum (a dash: too few tokens); "
        "same top: tokens before which both find the same next token most probable, %; RMS Δp: of the probability of "
        "the token that stands there, points; CE: cross-entropy, nats per token.",
        ["text", "tokens", "KL", "median", "p99", "p99.9", "max", "same top", "RMS Δp", "CE base", "CE tuned"],
        rows,
    )


def _layers(weights: Mapping[str, Any]) -> Table:
    ranks: dict[str, list[Mapping[str, Any]]] = {}
    for matrix in weights["matrices"]:
        ranks.setdefault(matrix["layer"], []).append(matrix)

    def mean(layer: str, key: str) -> float:
        found = [matrix[key] for matrix in ranks.get(layer, [])]
        return sum(found) / len(found) if found else math.nan

    rows = [
        [
            plain(layer["layer"]),
            f"{layer['parameters']:,}",
            dash(layer["relative"], 4),
            percent(layer["share"]),
            dash(layer["predicted_kl"], 5),
            number(mean(layer["layer"], "effective_rank")),
            number(mean(layer["layer"], "full_rank")),
        ]
        for layer in weights["layers"]
    ]
    return Table(
        "weights",
        "Weight change Δ by layer: ‖Δ‖ / ‖base‖; share of the whole ‖Δ‖², %; the layer's part of ½ΔθᵀFΔθ, nats per "
        "token; effective rank (exp of the entropy of Δ's singular values) and the largest possible, means over the "
        "layer's matrices that moved.",
        ["layer", "weights", "relative", "share", "½ΔθᵀFΔθ", "effective rank", "of"],
        rows,
    )


def _behaviour(behaviour: Mapping[str, Any]) -> Section:
    tables: list[Table] = []
    if outputs := behaviour.get("outputs"):
        rows = [
            [
                plain(row["name"]).replace("_", " "),
                str(row["n"]),
                *(dash(row[key], 3) for key in ("base", "tuned", "difference", "low", "high")),
            ]
            for row in outputs["measures"]
        ]
        caption = (
            "Greedy continuations of the own task's prompts: length in tokens, shares that are empty or unfinished, "
            "share of 4-grams that repeat, distinct n-grams, self-BLEU; difference: tuned − base, with its 95% "
            "interval over prompts where the measure is a mean over prompts."
        )
        tables.append(
            Table("outputs", caption, ["measure", "prompts", "base", "tuned", "difference", "low", "high"], rows)
        )
    if safety := behaviour.get("safety"):
        rows = [
            [
                plain(row["name"]).replace("_", " "),
                str(row["difference"]["n"]),
                percent(row["base"]),
                percent(row["tuned"]),
                with_limits(row["difference"], 100),
                f"{row['lost']} / {row['gained']}",
                NONE if row["p_value"] is None else f"{row['p_value']:.2g}",
            ]
            for row in safety["rates"]
        ]
        caption = (
            "On the prompts given: refusal of harmful prompts, refusal of benign ones (over-refusal), and incoherent "
            "answers of all, % of prompts; 1→0 / 0→1: prompts of which it was true of the base only, and of the tuned "
            "model only; p: McNemar's exact. Refusals are found by phrases."
        )
        tables.append(
            Table("safety", caption, ["rate", "prompts", "base", "tuned", "difference", "1→0 / 0→1", "p"], rows)
        )
    return Section("behaviour", "Behaviour", "What both models write; it is no part of the verdict.", tables)


def _advice(advice: Mapping[str, Any]) -> Section:
    points = advice["points"]
    rows = [
        [
            plain(point["name"]),
            plain(point["stands_for"]) or NONE,
            number(100 * point["own"]),
            with_limits(point["own_change"], 100),
            number(100 * point["retention"]["mean"], 1),
            with_limits(point["retention_change"], 100),
            "✓" if point["efficient"] else "",
        ]
        for point in points
    ]
    table = Table(
        "advice",
        "Mixtures of the base's and the tuned weights, scored without retraining; own task and retention (mean over "
        "capabilities of the base's score above chance, %), changes against the tuned model with "
        f"{100 * advice['level']:g}% intervals over items; efficient: no other is better in both. Each is a proxy of "
        "the remedy beside it: with it, training would have gone another way.",
        ["weights", "stands for", "own task", "change", "retention", "change", "efficient"],
        rows,
    )
    best = advice["best"]
    kept = "the tuned model as it is" if best["alpha"] == 1 else f"base + {best['alpha']:g} Δ"
    lead = (
        f"Of the interpolations whose own-task score is within {100 * best['margin']:g} points of the tuned model's, "
        f"{kept} retains most; on the half of the items that did not choose it, own task "
        f"{with_limits(best['own_change'], 100)} and retention {with_limits(best['retention_change'], 100)} points."
    )
    if advice.get("saved"):
        lead += f" It is saved in {plain(advice['saved'])}."
    bars = []
    if replay := advice.get("replay"):
        lead += (
            f" The loss on general text: {dash(replay['loss_base'], 3)} before, {dash(replay['loss_tuned'], 3)} "
            f"after, in nats per token; its slope along Δ at the tuned model, which replay would act against, is "
            f"{dash(replay['at_tuned'], 3)}."
        )
        known = {layer: slope for layer, slope in replay["by_layer"].items() if slope is not None}
        bars.append(bars_of("That slope by layer, nats per token", known, 4))
    facts = [(f"reliability of {plain(kind)}", plain(sentence)) for kind, sentence in advice["reliability"].items()]
    return Section("advice", "What would have helped", lead, [table], bars, _scatter(points), facts)


def _scatter(points: list[Mapping[str, Any]]) -> Scatter:
    xs, ys = (
        [100 * value for value in axis]
        for axis in zip(*((p["own"], p["retention"]["mean"]) for p in points), strict=True)
    )
    (x_of, ticks_x), (y_of, ticks_y) = _axis(xs, 60, 540), _axis(ys, 250, 20)
    placed = [
        (x_of(x), y_of(y), plain(p["name"]), bool(p["efficient"])) for x, y, p in zip(xs, ys, points, strict=True)
    ]
    return Scatter(
        "Own task against retention",
        "own task (score × 100)",
        "retention (%)",
        ticks_x,
        ticks_y,
        placed,
        _labels(placed),
    )


def _labels(points: list[tuple[float, float, str, bool]]) -> list[tuple[float, float, str, str]]:
    """Names of the efficient points, above or below, left or right, wherever there is room; else none."""
    taken: list[tuple[float, float, float]] = []  # left, right, y
    found = []
    for x, y, name, efficient in points:
        width = 6.5 * len(name)
        for dx, dy in ((8, -7), (-8, -7), (8, 15), (-8, 15)):
            left = x + dx if dx > 0 else x + dx - width
            fits = left > 60 and left + width < 560
            clear = all(left > right or left + width < begin or abs(y + dy - row) > 13 for begin, right, row in taken)
            if efficient and fits and clear:
                taken.append((left, left + width, y + dy))
                found.append((x + dx, y + dy, "start" if dx > 0 else "end", name))
                break
    return found


def _axis(values: list[float], start: float, stop: float) -> tuple[Any, list[tuple[float, str]]]:
    """A linear map of values into pixels, and round ticks."""
    low, high = min(values), max(values)
    pad = max((high - low) * 0.08, 1.0)
    low, high = low - pad, high + pad
    step = next((s for s in (1, 2, 5, 10, 20, 50) if (high - low) / s <= 8), 100)

    def place(value: float) -> float:
        return round(start + (stop - start) * (value - low) / (high - low), 1)

    first = math.ceil(low / step)
    return place, [(place(k * step), number(k * step, 0)) for k in range(first, math.floor(high / step) + 1)]
