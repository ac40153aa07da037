"""Figures: the same bytes from the same results, whatever the names, and no trace in the caller's settings."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.report.figures import NAMES, draw_figures
from forgetting.report.plasticity import plasticity_retention
from forgetting.report.style import DPI, drawn, looks, plain, shorten, styled, wrapped
from forgetting.report.summary import summarise

SMALL = {"mitigations": ["naive", "lora:r=8"], "tasks": ["people", "sums"], "capabilities": ["a", "b", "c"]}


def _draw(store, folder):
    finished = {}
    for record in store.records():
        if record.status == "finished":
            finished.setdefault(record.config.mitigation, []).append(record)
    return draw_figures(finished, summarise(store), folder)


def test_figures_hold_no_date_and_change_with_the_results_alone(make_study, tmp_path):
    """That the same results give the same bytes is tested on whole reports."""
    store = make_study(**SMALL, seeds=[0])
    before = _draw(store, tmp_path / "before")
    assert [figure.name for figure in before] == list(NAMES)
    for figure in before:
        assert b"CreationDate" not in figure.pdf.read_bytes()
        assert b"Software" not in figure.png.read_bytes()
    captions = {figure.name: figure.caption for figure in before}
    assert "one seed, no interval" in captions["plasticity_retention"]
    assert "Mean over 1 seed;" in captions["drift"]

    for record in store.records():
        record.rows[-1].R[0] = 0.0  # not on the diagonal of R: LA stays
        store.save(record)
    after = _draw(store, tmp_path / "after")
    for suffix in ("png", "pdf"):
        changed = [
            one.name
            for one, other in zip(before, after, strict=True)
            if getattr(one, suffix).read_bytes() != getattr(other, suffix).read_bytes()
        ]
        assert changed == ["task_matrix"]


@pytest.mark.parametrize(
    "unusual",
    [
        {"tasks": ["x" * 200], "mitigations": ["low_lr:factor=0.1"], "seeds": [0], "with_items": False},
        {"tasks": ["<b>$x^{</b>", "_a$b", "中\n\x1b[31m"], "capabilities": ["$\\bad{", "_", "", "a"], "seeds": [0]},
        {"capabilities": [f"a_long_capability_name_{i}" for i in range(17)], "perplexity": True, "seeds": [0, 1]},
    ],
    ids=["one long task without naive", "hostile names", "perplexity, many capabilities"],
)
def test_unusual_studies_are_drawn(make_study, tmp_path, unusual):
    figures = _draw(make_study(**{**SMALL, **unusual}), tmp_path / "figures")
    assert [figure.name for figure in figures] == list(NAMES)
    for figure in figures:
        width, height = struct.unpack(">II", figure.png.read_bytes()[16:24])
        assert 3 * DPI <= width <= 14 * DPI and 2 * DPI <= height <= 14 * DPI


def test_what_cannot_be_drawn_is_not_and_an_old_figure_of_it_goes(make_study, tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    store = make_study(**SMALL, seeds=[0])
    for suffix in ("png", "pdf"):
        (tmp_path / f"drift.{suffix}").write_text("of an earlier report")
    for record in store.records():
        for row in record.rows:
            row.drift = {}
        for capability in record.capabilities:
            capability.chance = 1.0  # no base model is above it
        store.save(record)
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    assert [figure.name for figure in _draw(store, tmp_path)] == ["task_matrix", "capabilities"]
    assert sorted(path.name for path in Path(tmp_path).glob("*.p*")) == [
        "capabilities.pdf",
        "capabilities.png",
        "task_matrix.pdf",
        "task_matrix.png",
    ]
    # and the caller's matplotlib is as it was
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend
    assert plt.get_fignums() == []


def test_without_a_finished_run_nothing_is_drawn(make_study, tmp_path):
    store = make_study(mitigations=["naive"], seeds=[0], unfinished={("naive", 0): 2})
    assert _draw(store, tmp_path) == []


@given(st.lists(st.text(max_size=80), unique_by=plain, max_size=6), st.integers(8, 40))
def test_short_names_fit_and_differ(names, width):
    short = shorten(names, width)
    assert all(len(name) <= width for name in short)
    assert len(set(short)) == len(names)
    assert [name for name in map(plain, names) if len(name) <= width] == [
        cut for name, cut in zip(map(plain, names), short, strict=True) if len(name) <= width
    ]


def test_long_names_keep_both_ends():
    assert shorten(["replay:fraction=0.1+low_lr:factor=0.3"], 20) == ["replay:frac…ctor=0.3"]
    assert shorten(["a" * 30 + "b", "a" * 30 + "c"], 10) == ["aaaaa…aaab", "aaaaa…aaac"]
    assert shorten(["a" * 30 + "b" + "a" * 30, "a" * 30 + "c" + "a" * 30], 10) == ["aaaaa…a #1", "aaaaa…a #2"]


def test_plain_text_is_one_line_of_printable_characters():
    assert plain("a\tb\nc\x1b[31m\u202ed\x00 ") == "a b c[31md"
    assert drawn("_a$b$") == r" _a\$b\$"
    assert wrapped("replay:fraction=0.1+low_lr:factor=0.3", 24) == "replay:fraction=0.1+\nlow_lr:factor=0.3"


def test_fifteen_mitigations_look_different_and_naive_is_black():
    names = ["naive", *(f"method{i}" for i in range(14))]
    found = looks(names)
    assert len({(look.color, look.marker, look.dash) for look in found.values()}) == 15
    assert found["naive"].color == (0.0, 0.0, 0.0)
    # A mitigation looks the same in every figure, also where others have no finished run.
    assert list(found) == names


@pytest.mark.parametrize(
    ("mitigation", "own"), [("wise_ft:alpha=0.3", 0.3), ("wise_ft", 0.5), ("./gone.py:alpha=0.3", None)]
)
def test_a_runs_other_strengths_are_joined_in_their_order(make_study, tmp_path, monkeypatch, mitigation, own):
    """Through the run's own point where its strength is known; one entry of the legend for all."""
    from matplotlib.axes import Axes

    store = make_study(**{**SMALL, "mitigations": ["naive", mitigation]}, seeds=[0])
    record = next(r for r in store.records() if r.config.mitigation == mitigation)
    strengths = (0.75, 0.1, 1.0)
    for row in record.rows[1:]:
        row.views = {f"alpha={a:g}": {"R": [a, a], "G": row.G} for a in strengths}  # LA is 100 a
    store.save(record)
    lines, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, *args, **kw: lines.append(args) or plot(axis, *args, **kw))
    with styled():
        figure = plasticity_retention(summarise(store), looks(["naive", mitigation]), tmp_path)
    assert figure is not None and "on a line with the run's own point" in figure.caption
    line, marks = lines[-2:]
    assert list(marks[0]) == pytest.approx([10, 75, 100])
    own_LA = 100 * sum(record.R[j + 1][j] for j in range(2)) / 2
    expected = {0.1: 10, 0.75: 75, 1.0: 100} | ({own: own_LA} if own else {})
    assert list(line[0]) == pytest.approx([expected[a] for a in sorted(expected)])
