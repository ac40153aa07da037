"""A verdict as tables: for the terminal, the report, the model card and LaTeX."""

from __future__ import annotations

import math

from forgetting.audit.schema import Capability, Difference, Verdict
from forgetting.report.cells import NONE, Table, number
from forgetting.report.style import plain


def p_value(p: float | None) -> str:
    """A p-value with two digits."""
    return NONE if p is None else "< .0001" if p < 1e-4 else f"{p:.2g}"


def change(difference: Difference, scale: float) -> str:
    """A difference with its interval: ``−3.0 [−5.1, −0.9]``."""
    digits = 1 if scale == 100 else 3
    value = number(scale * difference.value, digits)
    value = value if value.startswith("−") else f"+{value}"
    if difference.low is None or difference.high is None:
        return value
    return f"{value} [{number(scale * difference.low, digits)}, {number(scale * difference.high, digits)}]"


def _difference(record: Capability, scale: float) -> str:
    """Of a perplexity in its unit, and as a share of the base's."""
    found = change(record.difference, scale)
    return found if record.rise is None else f"{found}, {change(record.rise, 100)}%"


def capability_table(verdict: Verdict) -> Table:
    """A row per capability, then their mean."""
    rows = []
    for record in verdict.capabilities:
        share = record.difference.effective is not None
        scale, digits = (100.0, 1) if share else (1.0, 3)
        flips = f"{record.lost} / {record.gained}" if record.lost is not None else NONE
        noise = NONE if record.noise is None else str(record.noise.lost + record.noise.gained)
        rows.append(
            [
                plain(record.name),
                record.verdict or "not judged",
                str(record.n) + ("" if record.clusters is None else f" in {record.clusters}"),
                number(100 * record.chance) if share else NONE,
                number(scale * record.base, digits),
                number(scale * record.tuned, digits),
                _difference(record, scale),
                number(100 * (math.nan if record.retention is None else record.retention), 0),
                flips,
                noise,
                p_value(record.p_mcnemar),
                p_value(record.p_holm),
                p_value(record.p_margin),
                NONE if record.items_to_decide is None else str(record.items_to_decide),
            ]
        )
    if (mean := verdict.mean) is not None:
        rows.append(
            [
                f"mean of {mean.capabilities}",
                "",
                str(mean.n),
                NONE,
                number(100 * mean.base),
                number(100 * mean.tuned),
                change(mean.difference, 100),
                NONE,
                NONE,
                NONE,
                NONE,
                p_value(mean.p_holm),
                p_value(mean.p_margin),
                NONE,
            ]
        )
    settings = verdict.settings
    level = f"{100 * (1 - settings.alpha):g}%"
    contexts = " (in so many shared contexts)" if any(record.clusters for record in verdict.capabilities) else ""
    texts = ""
    if any(record.rise is not None for record in verdict.capabilities):
        texts = ", of perplexities in nats per word or byte, and in % of the base's"
    return Table(
        "audit",
        f"{plain(verdict.tuned.name)} against {plain(verdict.base.name)}: {verdict.verdict}. Scores in % of items"
        f"{contexts}; difference: tuned − base in points with its {level} interval over items{texts}; "
        "retention: share of the base's score above chance; 1→0 / 0→1: items lost and gained; noise: flips of the base "
        "against itself at another batch size; p: McNemar's exact, the test of no difference after Holm's correction "
        "over the "
        f"capabilities and their mean, and that of a loss of {100 * settings.margin:g} points or more"
        f"{f' (a rise of {100 * settings.rise:g}%)' if texts else ''}; "
        "decide: the items that would.",
        [
            "capability",
            "verdict",
            "items",
            "chance",
            "base",
            "tuned",
            "difference",
            "retention",
            "1→0 / 0→1",
            "noise",
            "p McNemar",
            "p Holm",
            "p margin",
            "decide",
        ],
        rows,
    )
