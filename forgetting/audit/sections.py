"""Drift, behaviour and advice in a verdict, as tables and drawings of the report: from ``verdict.json`` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forgetting.audit.schema import Verdict
from forgetting.report.cells import NONE, Table, number
from forgetting.report.style import plain


@dataclass(frozen=True)
class Bars:
    """A drawing of one number per name.

    Attributes:
        title: What is drawn, with its unit.
        rows: Name, length as a share of the longest, and the number as text.
    """

    title: str
    rows: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Scatter:
    """A drawing of points on two axes, each as a position in a plot 560 wide and 300 high.

    Attributes:
        title: What is drawn.
        x, y: Names of the axes, with units.
        ticks_x, ticks_y: Positions and labels.
        points: Position, name, and whether no other is better in both.
        labels: Of those, where they do not cover one another: position, end of the text that is there, name.
    """

    title: str
    x: str
    y: str
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]
    points: list[tuple[float, float, str, bool]]
    labels: list[tuple[float, float, str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: Of its anchor.
        title: Its heading.
        lead: What it says, before its tables.
        facts: Terms and what is said of them, after its tables.
    """

    name: str
    title: str
    lead: str
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    scatter: Scatter | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)


def sections(verdict: Verdict) -> list[Section]:
    """Return the parts that the verdict has data for."""
    found = []
    if verdict.drift is not None:
        found.append(_drift(verdict.drift))
    if verdict.behaviour is not None:
        found.append(_behaviour(verdict.behaviour))
    if verdict.advice is not None:
        found.append(_advice(verdict.advice))
    return found


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else number(value, digits)


def _percent(value: float | None) -> str:
    return NONE if value is None else number(100 * value)


def _bars(title: str, values: Mapping[str, float], digits: int) -> Bars:
    longest = max((abs(value) for value in values.values()), default=0) or 1
    return Bars(title, [(plain(name), abs(v) / longest, number(v, digits)) for name, v in values.items()])


def _drift(drift: Mapping[str, Any]) -> Section:
    tables, bars, leads = [], [], []
    if texts := drift.get("texts"):
        tables.append(_texts(texts))
    if bits := drift.get("bits_per_byte"):
        change = bits["difference"]
        leads.append(
            f"Bits per byte of general text: base {_number(bits['base'], 3)}, tuned {_number(bits['tuned'], 3)}, "
            f"difference {_number(change['mean'], 3)} [{_number(change['low'], 3)}, {_number(change['high'], 3)}]."
        )
    if weights := drift.get("weights"):
        relative = {row["layer"]: row["relative"] for row in weights["layers"] if row["relative"] is not None}
        bars.append(_bars("Change of the weights by layer, ‖Δ‖ / ‖base‖", relative, 4))
        tables.append(_layers(weights))
        if weights["predicted_kl"] is not None:
            leads.append(
                f"½ΔθᵀFΔθ, F the diagonal of the base's Fisher information, foretells a KL of "
                f"{number(weights['predicted_kl'], 4)} nats per token on general text; "
                f"measured: {_number(weights['measured_kl'], 4)}."
            )
    return Section("drift", "Drift", " ".join(leads), tables, bars)


def _texts(texts: Mapping[str, Any]) -> Table:
    rows = [
        [
            plain(name).replace("_", " "),
            str(text["tokens"]),
            *(_number(text[key], 4) for key in ("mean", "median", "p99", "p999", "maximum")),
            _percent(text["same_top"]),
            _percent(text["rms_delta_p"]),
            *(_number(text[key], 3) for key in ("ce_base", "ce_tuned")),
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
            _number(layer["relative"], 4),
            _percent(layer["share"]),
            _number(layer["predicted_kl"], 5),
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
                *(_number(row[key], 3) for key in ("base", "tuned", "difference", "low", "high")),
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
                _percent(row["base"]),
                _percent(row["tuned"]),
                _interval(row["difference"], 100),
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


def _interval(interval: Mapping[str, Any], scale: float) -> str:
    if interval["mean"] is None:
        return NONE
    mean = number(scale * interval["mean"])
    if interval["low"] is None or interval["high"] is None:
        return mean
    return f"{mean} [{number(scale * interval['low'])}, {number(scale * interval['high'])}]"


def _advice(advice: Mapping[str, Any]) -> Section:
    points = advice["points"]
    rows = [
        [
            plain(point["name"]),
            plain(point["stands_for"]) or NONE,
            number(100 * point["own"]),
            _interval(point["own_change"], 100),
            number(100 * point["retention"]["mean"], 1),
            _interval(point["retention_change"], 100),
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
        f"{_interval(best['own_change'], 100)} and retention {_interval(best['retention_change'], 100)} points."
    )
    if advice.get("saved"):
        lead += f" It is saved in {plain(advice['saved'])}."
    bars = []
    if replay := advice.get("replay"):
        lead += (
            f" The loss on general text: {_number(replay['loss_base'], 3)} before, {_number(replay['loss_tuned'], 3)} "
            f"after, in nats per token; its slope along Δ at the tuned model, which replay would act against, is "
            f"{_number(replay['at_tuned'], 3)}."
        )
        known = {layer: slope for layer, slope in replay["by_layer"].items() if slope is not None}
        bars.append(_bars("That slope by layer, nats per token", known, 4))
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
