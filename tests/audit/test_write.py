"""The folder that an audit leaves: a round trip through its own logs, a row per item, and pages that escape."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from forgetting.audit.card import model_card
from forgetting.audit.page import SHOWN, render_page
from forgetting.audit.run import audit_samples
from forgetting.audit.samples import write_samples
from forgetting.audit.schema import Settings, Verdict
from forgetting.audit.write import item_rows, write_audit
from forgetting.cli import main
from forgetting.errors import UsageError
from tests.audit.panels import flipped, hostile_audit, made, panel

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]><!-- \\end{table} $x$ | a | `b` <b>\u202ebold",
)


def test_the_folder_holds_all_that_was_found(tmp_path: Path) -> None:
    audit = made(tmp_path)
    paths = write_audit(audit, tmp_path / "out")
    again = Verdict.model_validate_json(paths.verdict.read_text())
    assert again == audit.verdict and json.loads(paths.verdict.read_text())["schema_version"] == 2
    assert len(again.code["sha256"]) == len(again.prompts_sha256) == len(again.base.sha256) == 64
    items = pd.read_parquet(paths.items)
    assert len(items) == 120 and (items["flip"] == "lost").sum() == 20 and (items["flip"] == "gained").sum() == 3
    first = items.iloc[0]
    assert first["prompt"] == "question 0:" and list(first["choices"]) == [" yes", " no"] and first["target"] == " yes"
    assert list(first["base_log_probs"]) == [-1, -2] and first["tuned_answer"] == " no"
    assert r"20 / 3" in paths.table.read_text() and r"\bottomrule" in paths.table.read_text()
    card = paths.card.read_text()
    assert "**REGRESSED**" in card and audit.verdict.tuned.sha256 in card and "not said in the model" in card


def test_its_own_logs_give_the_same_verdict(tmp_path: Path) -> None:
    audit = made(tmp_path)
    write_audit(audit, tmp_path / "out")
    samples = write_audit(audit, tmp_path / "out").samples  # twice: the first one's files are replaced
    assert len(list(samples.rglob("samples_*.jsonl"))) == 4
    again = audit_samples(samples / "base", samples / "tuned", Settings()).verdict
    assert again.capabilities == audit.verdict.capabilities and again.mean == audit.verdict.mean
    assert again.verdict == "REGRESSED" and again.prompts_sha256 == audit.verdict.prompts_sha256


def test_logs_are_not_replaced_by_their_own_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_audit(made(tmp_path), tmp_path / "audit").samples
    monkeypatch.chdir(tmp_path)
    again = audit_samples(Path("audit/samples/base"), Path("audit/samples/tuned"), Settings())
    with pytest.raises(UsageError, match="--output 'audit': would replace the logs 'audit/samples/base'"):
        write_audit(again, Path("audit"))
    assert len(list(samples.rglob("samples_*.jsonl"))) == 4 and (tmp_path / "audit" / "verdict.json").exists()


def test_a_folder_that_was_half_rewritten_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = made(tmp_path)
    paths = write_audit(audit, tmp_path / "out")

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("forgetting.audit.write.render_page", fail)
    with pytest.raises(OSError, match="disk full"):
        write_audit(audit, tmp_path / "out")
    assert not paths.verdict.exists()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    hostile = hostile_audit(tmp_path, HOSTILE)
    page = render_page(hostile.verdict, item_rows(hostile))
    tags = Tags()
    tags.feed(page)
    assert [tag for tag, _ in tags.found].count("script") == 1 and "img" not in {tag for tag, _ in tags.found}
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)") >= 3
    policy = next(a["content"] for tag, a in tags.found if tag == "meta" and "http-equiv" in a)
    assert policy is not None and re.search(r"default-src 'none'.*script-src 'sha256-[\w+/=]+'$", policy)
    card = model_card(hostile.verdict)
    assert "<script>" not in card and "\\<script\\>" in card


def test_the_page_shows_the_flips_that_moved_furthest(tmp_path: Path) -> None:
    base, tuned = flipped(SHOWN + 60, right=SHOWN + 60, lost=SHOWN + 30, gained=0)
    write_samples(panel(a=base), tmp_path / "x", "x", "2026-01-31T12-00-00.000000")
    write_samples(panel(a=tuned), tmp_path / "y", "y", "2026-01-31T12-00-00.000000")
    audit = audit_samples(tmp_path / "x", tmp_path / "y", Settings())
    page = render_page(audit.verdict, item_rows(audit))
    assert page.count('<article class="flip lost"') == SHOWN
    assert f"{SHOWN + 30} items flipped; {SHOWN} are shown" in " ".join(page.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give BASE and TUNED, or --from-samples"),
        (["micro"], "give BASE and TUNED, or --from-samples"),
        (["./mine", "./tuned"], "--suite: is not given, and what './mine' could do is not known"),
        (["micro", "micro", "--margin", "3"], "--margin 3.0: is not between 0 and 1"),
        (["micro", "micro", "--rise", "0"], "--rise 0.0: is not between 0 and 1"),
        (["micro", "micro", "--alpha", "0.7"], "--alpha 0.7"),
        (["--from-samples", "a", "b", "--limit", "5"], "--from-samples: compares logs, and --limit is of models"),
        (["--from-samples", "a", "b", "--batch-size", "64"], "and --batch-size is of models"),
        (["--from-samples", "a", "b", "--diagnose"], "and --diagnose is of models"),
        (["--from-samples", "a", "b", "--cache", "c"], "and --cache is of models"),
        (["micro", "micro", "--batch-size", "0"], "batch_size '0': is neither a positive number"),
        (["--from-samples", "a", "b", "--no-drift"], "and --no-drift is of models"),
        (["--from-samples", "a", "b", "--trust-remote-code"], "and --trust-remote-code is of models"),
        (["--from-samples", "nowhere", "b"], "samples 'nowhere': no such file"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["forgetting", "audit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]
