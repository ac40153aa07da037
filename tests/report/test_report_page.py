"""The whole report: one inert, self-contained page, the same bytes again."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

import pytest
import yaml

from forgetting.config import parse_study, write_yaml
from forgetting.errors import UsageError
from forgetting.report import write_report

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \"'></pre> javascript:alert(3)"
SMALL = {"mitigations": ["naive", "lora:r=8"], "tasks": ["people", "sums"], "capabilities": ["a", "b", "c"]}
ACTIVE = {"script", "iframe", "object", "embed", "link", "form", "input", "base", "svg", "audio", "video"}


class _Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _read(paths):
    page = _Reader(paths.page.read_text())
    return page, re.sub(r"\s+", " ", "".join(page.text))


def test_the_report_of_a_study(make_study):
    store = make_study(**SMALL, failed={("lora:r=8", 1): "out of GPU memory"}, unfinished={("naive", 2): 2})
    results = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    paths = write_report(store.folder)
    assert paths.summary == store.folder / "summary.csv" and paths.page == store.folder / "report.html"
    assert len(paths.frame) == 8  # six runs and two views
    assert {path.name for path in paths.tables} == {
        f"{name}.{suffix}" for name in ("headline", "cost", "against_naive") for suffix in ("md", "tex")
    }
    for path in (paths.summary, *paths.figures, *paths.tables, paths.page):
        assert path.stat().st_size > 0
    page, text = _read(paths)
    for expected in (
        "4 of 6 finished, 1 failed, 1 unfinished",
        "out of GPU memory",
        "lora:r=8 (adapter off)",
        "duplicates between train and test: 4",
        "examples truncated in training: 1",
        "forgetting run study.yaml",
        "forgetting run 'my study.yaml'",
        "git commit0123456789abcdef",
        "hardware processorA Processor",
        "1/(T−1) Σ_{j<T} (max_{j≤l<T} R[l, j] − R[T, j])",
    ):
        assert expected in text, expected
    embedded = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    pictures = [path.read_bytes() for path in paths.figures if path.suffix == ".png"]
    assert [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in embedded] == pictures
    assert re.search(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", text) and "95% interval over items" in text
    assert "Mean over 2 seeds; no interval is shown." in text and "bars: 95% t interval over seeds" in text

    configuration = html.unescape(re.findall(r"<pre>(.*?)</pre>", paths.page.read_text(), flags=re.DOTALL)[-1])
    assert configuration == write_yaml(store.config())
    assert parse_study(yaml.safe_load(configuration)) == store.config()

    # results are read and never written, and the same results give the same report
    derived = [paths.summary, paths.page, *paths.tables, *paths.figures]
    before = {path: path.read_bytes() for path in derived}
    write_report(store.folder)
    assert {path: path.read_bytes() for path in derived} == before
    assert {path: path.read_bytes() for path in results} == results
    assert {path for path in store.folder.rglob("*") if path.is_file()} == {*results, *derived}


def test_hostile_strings_are_inert_and_nothing_is_loaded_from_elsewhere(make_study):
    store = make_study(
        mitigations=["naive", "lora:r=8"],
        tasks=[ATTACK, "a task"],
        capabilities=[ATTACK, "b", "c"],
        seeds=[0, 1],
        failed={("naive", 1): ATTACK},
    )
    for record in store.records():
        record.tasks[0].notes = {ATTACK: ATTACK}
        record.provenance = {ATTACK: ATTACK, "command": ["forgetting", ATTACK]}
        store.save(record)
    page, text = _read(write_report(store.folder))
    assert page.open == [] and not ACTIVE & set(page.tags)
    assert page.tags.count("img") == 4  # the figures
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    for tag, key, value in page.attributes:
        if key in ("src", "href"):
            assert value.startswith("data:image/png;base64," if tag == "img" else "#"), value[:80]
    assert "url(" not in text and "@import" not in text
    assert ("meta", "content") in [(tag, key) for tag, key, value in page.attributes if "default-src 'none'" in value]
    # shown as what it is: task, capability, reason, note, provenance, command
    assert text.count("<script>alert(1)</script>") >= 6 and "49" not in text.split("Failed and unfinished")[1][:300]


@pytest.mark.parametrize("begun", [True, False])
def test_a_study_without_a_finished_run_has_a_report(make_study, begun):
    store = make_study(mitigations=["naive"], seeds=[0], unfinished={("naive", 0): 1})
    if not begun:
        next((store.folder / "runs").glob("*[0-9a-f].json")).unlink()
    paths = write_report(store.folder)
    _, text = _read(paths)
    assert paths.figures == [] and "no run has finished yet" in text
    assert "0 of 1 finished, 1 unfinished" in text
    assert ("not begun" in text) != begun


def test_a_run_that_failed_before_its_first_row_is_listed(make_study):
    store = make_study(mitigations=["naive"], seeds=[0])
    record = next(store.records())
    record.rows, record.status, record.reason = [], "failed", "no memory at all"
    store.save(record)
    _, text = _read(write_report(store.folder))
    assert "no memory at all" in text


def test_a_folder_without_a_study_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"has no study\.yaml"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
