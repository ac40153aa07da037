"""The folder that an audit leaves behind."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forgetting.audit.card import model_card
from forgetting.audit.page import render_page
from forgetting.audit.run import Audit
from forgetting.audit.samples import write_samples
from forgetting.audit.tables import capability_table
from forgetting.errors import UsageError
from forgetting.report.tables import latex
from forgetting.results import write_atomically


@dataclass(frozen=True)
class AuditPaths:
    """What :func:`write_audit` wrote.

    Attributes:
        verdict: ``verdict.json``.
        items: ``items.parquet``: a row per capability and item.
        samples: ``samples``, with lm-eval's files of either model in ``base`` and ``tuned``.
        page: ``report.html``.
        card: ``model_card.md``.
        table: ``table.tex``.
    """

    verdict: Path
    items: Path
    samples: Path
    page: Path
    card: Path
    table: Path


def write_audit(audit: Audit, folder: Path) -> AuditPaths:
    """Write an audit; files of an earlier one are replaced.

    Raises:
        UsageError: if the folder cannot be written, or writing would replace the logs that the audit is of.
    """
    paths = AuditPaths(
        verdict=folder / "verdict.json",
        items=folder / "items.parquet",
        samples=folder / "samples",
        page=folder / "report.html",
        card=folder / "model_card.md",
        table=folder / "table.tex",
    )
    for side in (audit.verdict.base, audit.verdict.tuned):
        if side.kind == "samples" and Path(side.name).resolve().is_relative_to(paths.samples.resolve()):
            raise UsageError(f"--output {str(folder)!r}: would replace the logs {side.name!r}; give another folder")
    rows = item_rows(audit)
    try:
        paths.verdict.unlink(missing_ok=True)  # until it is there again, the folder is not whole
    except OSError as error:
        raise UsageError(f"--output {str(folder)!r}: cannot be written ({error.strerror or error})") from None
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    for which in ("base", "tuned"):
        for old in (paths.samples / which).glob("*_20*.json*"):  # this audit's alone
            old.unlink()
        panel = {pair.base.name: getattr(pair, which) for pair in audit.pairs}
        write_samples(panel, paths.samples / which, getattr(audit.verdict, which).name, date)
    write_atomically(paths.items, _parquet(rows))
    write_atomically(paths.page, render_page(audit.verdict, rows).encode())
    write_atomically(paths.card, model_card(audit.verdict).encode())
    write_atomically(paths.table, latex(capability_table(audit.verdict)).encode())
    # Last: a folder that has it is whole.
    write_atomically(paths.verdict, (audit.verdict.model_dump_json(indent=2) + "\n").encode())
    return paths


def item_rows(audit: Audit) -> list[dict[str, Any]]:
    """A row per capability and item, as ``items.parquet`` holds it.

    Columns: ``capability``, ``task``, ``doc_id``, ``doc_hash``, ``context`` (the label that items share; ``None``
    where none do), ``prompt``, ``choices``, ``target``; of ``base_`` and ``tuned_``: ``outcome``, ``answer`` and
    ``log_probs`` (of each choice, nats); ``flip``: ``lost`` where the outcome fell, ``gained`` where it rose, empty
    where it did not change or is no share; ``noisy``: whether the base model's outcome changed in the A/A run.
    """
    rows = []
    for pair in audit.pairs:
        contexts: list[str] | list[None] = pair.contexts or [None] * len(pair.base.items)
        for base, tuned, context in zip(pair.base.items, pair.tuned.items, contexts, strict=True):
            change = tuned.outcome - base.outcome if pair.bounded else 0.0
            rows.append(
                {
                    "capability": pair.base.name,
                    "task": base.task,
                    "doc_id": base.key[1],
                    "doc_hash": base.doc_hash,
                    "context": context,
                    "prompt": base.prompt,
                    "choices": list(base.choices),
                    "target": base.target,
                    "base_outcome": base.outcome,
                    "tuned_outcome": tuned.outcome,
                    "base_answer": base.answer,
                    "tuned_answer": tuned.answer,
                    "base_log_probs": list(base.log_probs),
                    "tuned_log_probs": list(tuned.log_probs),
                    "flip": "lost" if change < 0 else "gained" if change > 0 else "",
                    "noisy": (pair.base.name, *base.key) in audit.noisy,
                }
            )
    return rows


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    text, numbers = pa.string(), pa.list_(pa.float64())
    kinds: dict[str, Any] = {
        "doc_id": pa.int64(),
        "choices": pa.list_(text),
        "base_outcome": pa.float64(),
        "tuned_outcome": pa.float64(),
        "base_log_probs": numbers,
        "tuned_log_probs": numbers,
        "noisy": pa.bool_(),
    }
    schema = pa.schema([(name, kinds.get(name, text)) for name in rows[0]])
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), content)
    return content.getvalue()
