"""One self-contained HTML page: everything in it is escaped, embedded and without scripts."""

from __future__ import annotations

import base64
import shlex
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from forgetting.config import write_yaml
from forgetting.report import contents, inventory
from forgetting.report.style import DPI, Figure, plain
from forgetting.results import ResultStore, RunRecord


def render_page(
    store: ResultStore,
    frame: pd.DataFrame,
    finished: Mapping[str, Sequence[RunRecord]],
    figures: Sequence[Figure],
) -> str:
    """Return the page's HTML; the same results give the same text.

    Args:
        store: The study.
        frame: What ``summarise`` returned for it.
        finished: Its finished runs per mitigation.
        figures: On disk; their PNG files are embedded.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    config = store.config()
    records = list(store.records())
    begun = [record for record in records if record.rows]
    items = store.load_items(begun[0].run_id) if begun else None
    runs = frame[frame["view"] == ""]
    return environment.get_template("page.html").render(
        title=config.name,
        config=config,
        counts=_counts(runs),
        headline=contents.headline(frame),
        differences=contents.differences(frame),
        figures=[_embedded(figure) for figure in figures],
        tasks=inventory.tasks(begun, items) if items else None,
        capabilities=inventory.capabilities(finished, begun[0], items) if items and begun[0].capabilities else None,
        cost=contents.costs(frame),
        not_finished=inventory.not_finished(frame),
        definitions=inventory.DEFINITIONS,
        commands=_commands(records),
        yaml=write_yaml(config),
        provenance=inventory.provenance(records),
    )


def _counts(runs: pd.DataFrame) -> dict[str, int]:
    statuses = runs["status"].value_counts()
    finished, failed = int(statuses.get("finished", 0)), int(statuses.get("failed", 0))
    total = len(runs)
    return {"total": total, "finished": finished, "failed": failed, "unfinished": total - finished - failed}


def _embedded(figure: Figure) -> dict[str, Any]:
    content = figure.png.read_bytes()
    (pixels,) = struct.unpack(">I", content[16:20])  # the width in a PNG's header
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "width": pixels * 96 // DPI,  # CSS has 96 pixels per inch
        "data": base64.b64encode(content).decode(),
    }


def _commands(records: Sequence[RunRecord]) -> list[str]:
    """The distinct commands that began the runs, as one would type them."""
    given = (record.provenance.get("command") for record in records)
    lines = (plain(shlex.join(map(str, command))) for command in given if isinstance(command, list))
    return list(dict.fromkeys(lines))
