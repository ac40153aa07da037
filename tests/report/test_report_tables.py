"""Tables: numbers, captions, and names that cannot become markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from forgetting.report import contents
from forgetting.report.cells import Table, large, number, spread
from forgetting.report.summary import summarise
from forgetting.report.tables import latex, markdown, terminal_table

HOSTILE = Table("x", "100% of a_b", ["name", "n"], [["a|b <script> `c` *d* [e](f) $g$ ~h", "1"]])


def test_numbers():
    assert (number(-0.04), number(-1.25, 2), number(float("nan"))) == ("0.0", "−1.25", "–")
    assert spread(12.34, 0.56) == "12.3 ± 0.6" and spread(12.34, float("nan")) == "12.3"
    assert spread(float("nan"), float("nan")) == "–"
    assert [large(value) for value in (0, 999, 1500, 4.2e11, 3e15)] == ["0", "999", "1.5 k", "420 G", "3 P"]


def _rendered(frame, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal_table(frame))
    return console.file.getvalue()


def test_terminal_table_fits_and_holds_every_mitigation(make_study):
    frame = summarise(make_study(failed={("naive", 1): "the loss is NaN"}))
    narrow, wide = _rendered(frame, 80), _rendered(frame, 120)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    for name in ("naive", "low_lr:factor=0.1", "ewc:strength=1000", "lora:r=8 (adapter off)"):
        assert name in wide
    flat = " ".join(wide.split())
    assert "95% t interval over seeds" in flat and "1 failed and 0 unfinished" in flat
    means = contents.headline(frame, short=True)
    for cell in means.rows[0][2:]:
        assert cell.split(" ±")[0] in narrow


def test_names_are_never_rich_markup(make_study):
    frame = summarise(make_study(mitigations=["naive"], seeds=[0]))
    frame["mitigation"] = "[red]x[/red][/]\x1b[31m"
    assert "[red]x[/red][/][31m" in _rendered(frame, 120)


def test_headline_columns_and_caption(make_study):
    frame = summarise(make_study(mitigations=["naive", "lora:r=8"]))
    table = contents.headline(frame)
    assert table.columns[:8] == [
        "mitigation",
        "n",
        "LA",
        "ACC",
        "forgetting",
        "retention (%)",
        "ΔG",
        "ΔCE pretraining",
    ]
    assert [row[0] for row in table.rows] == ["naive", "lora:r=8", "lora:r=8 (adapter off)"]
    assert "in points (score × 100)" in table.caption and "undefined for 1 of 8 capabilities" in table.caption
    run = frame[frame["mitigation"] == "naive"]
    assert table.rows[0][2].startswith(f"{100 * run['LA'].mean():.1f} ± ")


def test_one_seed_is_said_in_the_caption(make_study):
    table = contents.headline(summarise(make_study(mitigations=["naive"], seeds=[0])))
    assert "one seed, so there is no interval" in table.caption
    assert not any("±" in cell for cell in table.rows[0])


def test_logarithms_are_not_multiplied_by_100(make_study):
    frame = summarise(make_study(mitigations=["naive"], seeds=[0], perplexity=True))
    table = contents.headline(frame)
    assert "−ln(perplexity)" in table.caption
    assert table.rows[0][2] == number(frame["LA"].iloc[0], 3)


def test_nothing_finished_is_said(make_study):
    frame = summarise(make_study(mitigations=["naive"], seeds=[0], unfinished={("naive", 0): 2}))
    table = contents.headline(frame)
    assert "No run has finished yet" in table.caption and "0 failed and 1 unfinished" in table.caption
    assert contents.costs(frame).rows[0][0] == "naive"
    assert contents.differences(frame) is None


def test_differences_leave_naive_out(make_study):
    table = contents.differences(summarise(make_study(mitigations=["naive", "lora:r=8"])))
    assert [row[:2] for row in table.rows] == [["lora:r=8", "3"]] and "paired by seed" in table.caption


def test_cost_is_relative_to_naive(make_study):
    table = contents.costs(summarise(make_study(mitigations=["naive", "replay:fraction=0.1"], seeds=[0])))
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["naive"]["× naive"] == "1.00" and rows["naive"]["replay (%)"] == "0.0"
    assert rows["replay:fraction=0.1"]["replay (%)"] == "10.0"
    assert rows["naive"]["steps"] == "500" and rows["naive"]["FLOPs"] == "2.1 T"
    assert rows["naive"]["peak memory"] == "700 MB"


def test_markdown_cells_stay_in_their_cells():
    lines = markdown(HOSTILE).splitlines()
    assert lines[:2] == ["| name | n |", "| --- | ---: |"]
    assert lines[2] == r"| a\|b \<script\> \`c\` \*d\* \[e\](f) \$g\$ \~h | 1 |"
    assert lines[-1] == "100% of a_b"


@pytest.mark.parametrize("character", list('&%$#_{}\\~^<>|"`'))
def test_latex_specials_are_escaped(character):
    text = latex(Table("x", character, [character], [[f"a{character}b"]]))
    body = text.splitlines()[-4]
    assert body.startswith("a\\") and body.endswith("b \\\\")


def test_latex_table():
    text = latex(HOSTILE)
    assert r"\caption{100\% of a\_b}" in text and r"\begin{tabular}{lr}" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\resizebox" not in text
    wide = latex(Table("x", "", [str(c) for c in range(12)], []))
    assert r"\resizebox{\textwidth}{!}{%" in wide and r"\end{tabular}}" in wide


def test_intransigence_is_a_column_where_it_is_known(make_study):
    frame = summarise(make_study(mitigations=["naive", "single_task"]))
    table = contents.headline(frame)
    column = table.columns.index("intransigence")
    assert table.rows[1][column] == "0.0 ± 0.0" and table.rows[0][column] not in ("–", "0.0 ± 0.0")
    assert "intransigence: LA of single_task at the same seed − LA" in table.caption


def test_a_runs_other_strengths_are_in_the_headline_and_not_in_the_terminal(make_study):
    store = make_study(mitigations=["wise_ft:alpha=0.3"], seeds=[0])
    record = next(store.records())
    for row in record.rows[1:]:
        row.views = {f"alpha={a:g}": {"R": row.R, "G": row.G} for a in (0.1, 1.0)}
    store.save(record)
    frame = summarise(store)
    named = [row[0] for row in contents.headline(frame).rows]
    assert named == ["wise_ft:alpha=0.3", "wise_ft:alpha=0.3 (alpha=0.1)", "wise_ft:alpha=0.3 (alpha=1)"]
    assert [row[0] for row in contents.headline(frame, short=True).rows] == named[:1]
