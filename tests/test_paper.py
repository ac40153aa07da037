"""The article: no number is typed, every macro comes from results, what is missing is said to be, and it builds."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "paper"
TEXTS = sorted([PAPER / "forgetting.tex", *(PAPER / "sections").rglob("*.tex")])

sys.path.insert(0, str(PAPER))
generate = importlib.import_module("generate")
latex = importlib.import_module("parts.latex")
studies = importlib.import_module("parts.studies")

CONSTRUCTS = (
    r"(?<!\\)%.*",
    r"\\(documentclass|usepackage)(\[[^\]]*\])?\{[^}]*\}",
    r"\\newcommand\{\\\w+\}\[\d\](\[[^\]]*\])?",
    r"\\renewcommand\{\\\w+fraction\}\{0\.\d+\}",
    r"\\([cC]ite[tp]?|ref|eqref|label|input|bibliography|result|when|resultfigure|resulttable(\[[^\]]*\])?)\{[^}]*\}",
    r"#\d",
    r"-?\d*\.?\d+(\\linewidth|\\baselineskip|(pt|cm|em)\b)",  # lengths
    r"\\frac\{1\}\{[TCN](-1)?\}",  # definitions: denominators, indices, squares
    r"\b[Tj]\s*-\s*1\b",
    r"[RG]_\{0,[jc]\}",
    r"\bj>1\b",
    r"\bi = 0\b",
    r"\^(2|\{\\circ 2\})",
    r"\b(stories260K|CIFAR-10|ResNet-20|BANKING77|CLINC150)\b",  # names
)
"""What of LaTeX may hold a digit."""

SPELLED = r"\b(three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundred|thousand|million)\b"

NOT_RESULTS = {
    "CITATION.cff": r"PackageVersion",
    "experiments/*.py": r"StudiesPlanned",
    "experiments/real_model.py": r"RealThreshold|RealTuningRuns",
    "forgetting/analysis/stats.py": r"Level",
    "forgetting/micro/model/README.md": r"World(Parameters|Steps|Batch|Context|Tokens|Minutes)",
    "forgetting/mitigations": r"MitigationCount|ReferenceCount",
    "paper/parts/models.py": r"DemoNear",
    "tests/fisher/test_exactness.py": r"FisherTolerance",
}
"""Macros that are a setting, a count of what the package has, or of its model card: where from, and which."""


def typed_numbers(text: str) -> list[str]:
    """Digits and spelled numbers outside of what may hold them, with what is around them."""
    for construct in CONSTRUCTS:
        text = re.sub(construct, "", text)
    return [text[max(0, m.start() - 20) : m.end() + 10] for m in re.finditer(rf"\d|{SPELLED}", text, re.IGNORECASE)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_no_number_is_typed(path: Path) -> None:
    assert typed_numbers(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "typed", ["81.6", r"95\,\%", r"$\lambda = 1000$", "Table 4", "over three seeds", "$R_{1,j}$", "2 cm3", "CIFAR-100"]
)
def test_a_typed_number_is_found(typed: str) -> None:
    text = (PAPER / "sections" / "demo.tex").read_text("utf-8")
    assert not typed_numbers(text) and typed_numbers(text.replace("retention", f"retention {typed}", 1) + typed)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results, with made-up ones for the parts that may not have been run."""
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "results", folder, ignore=shutil.ignore_patterns("*.gz", "*.png", "*.html", "cache"))
    picture = folder / "demo/figures/plasticity_retention.pdf"
    if not (folder / "leaderboard/leaderboard.csv").exists():
        (folder / "leaderboard/figures").mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / "leaderboard/figures/pareto.pdf")
        header = ["method", "mitigation", "kind", "n", "failed"]
        header += [f"{name}{end}" for name in ("LA", "retention", "BWT") for end in ("", "_low", "_high")]
        rows = [
            ["naive", "low_lr:factor=0.3", "baseline", 5, 0, 0.8, 0.7, 0.9, 0.2, 0.1, 0.3, -0.4, -0.5, -0.3],
            ["ewc, K-FAC", "ewc:mode=kfac", "method", 3, 1, 0.7, 0.6, 0.8, 0.9, 0.8, 1.0, -0.1, -0.2, 0.0],
            ["joint", "joint", "reference", 3, 0, 0.9, 0.8, 1.0, 0.9, 0.8, 1.0, 0.0, -0.1, 0.1],
        ]
        lines = [",".join(f'"{value}"' for value in row) for row in (header, *rows)]
        (folder / "leaderboard/leaderboard.csv").write_text("\n".join(lines))
        (folder / "leaderboard/not_run.json").write_text('["replay, both"]')
    if not (folder / "benchmarks/fisher/fisher_gpu.json").exists():
        gpu = {
            "gpu": "a device",
            "models": {"125M T128": {"ratio": 1.2, "memory_ratio": 1.1}},
            "kernel": [{"error": 3e-6, "deterministic": True}],
        }
        (folder / "benchmarks/fisher/fisher_gpu.json").write_text(json.dumps(gpu))
    study(folder, "made_up", "laptop", "holds", missing=[])
    return folder


def study(results: Path, name: str, scale: str, outcome: str, missing: list[str]) -> None:
    """Write the verdicts of a made-up study, with a figure."""
    folder = results / name / scale
    (folder / "figures").mkdir(parents=True)
    shutil.copy(ROOT / "results/demo/figures/drift.pdf", folder / "figures/drift.pdf")
    claim = {"key": "more", "sentence": "ρ is ≥ 50 % & more", "paper": "Someone 2020", "published": "λ = 10"}
    content = {
        "study": name,
        "scale": scale,
        "command": f"forgetting study run {name} --scale {scale}",
        "runs": 12,
        "claims": [claim],
        "verdicts": [{"claim": "more", "outcome": outcome, "ours": "-7 points (95% over seeds: -8 to .1, n = 3)"}],
        "missing": missing,
    }
    (folder / "verdicts.json").write_text(json.dumps(content))


def macros(results: Path) -> dict[str, tuple[str, str]]:
    """Name to text and source."""
    return dict(generate.generate(results).macros)


def test_macros_used_are_macros_defined(results: Path) -> None:
    out = generate.generate(results)
    text = "\n".join(path.read_text("utf-8") for path in TEXTS)
    generated = "\n".join(content.decode() for path, content in out.files.items() if path.endswith(".tex"))
    of_latex = {"Citet", "Delta", "Vert"}
    used = set(re.findall(r"\\([A-Z][A-Za-z]+)", text)) - of_latex
    assert used - set(out.macros) == set(), "used, and defined by nothing"
    assert set(out.macros) - used - set(re.findall(r"\\([A-Z][A-Za-z]+)", generated)) == set(), "defined, and unused"


def test_macros_come_from_results(results: Path) -> None:
    for name, (text, source) in macros(results).items():
        assert text and "nan" not in text.lower()
        if not source.startswith("results"):
            assert re.fullmatch(NOT_RESULTS[source], name), f"{name} from {source}"
        elif "*" not in source:
            assert (results.parent / source).exists(), f"{name} from {source}"


def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        generate.write(generate.generate(results), tmp_path / name)
    files = {path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file()}
    assert Path("macros.tex") in files and Path("figures/variants.pdf") in files
    for path in files:
        assert (tmp_path / "once" / path).read_bytes() == (tmp_path / "twice" / path).read_bytes()


def test_a_changed_result_changes_its_macro(results: Path) -> None:
    before = macros(results)
    summary = results / "demo/summary.csv"
    lines = summary.read_text().splitlines()
    cells = lines[1].split(",")
    assert cells[0] == "naive"
    cells[lines[0].split(",").index("retention")] = "0.123"
    summary.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))

    def faster(content: Any) -> None:
        content["results"]["gpt2 tied B16 T64"]["ours"]["ratio"] = 0.57

    edit(results / "benchmarks/fisher/fisher_cpu.json", faster)

    def worse(content: Any) -> None:
        for name, text in content["rows"][-1]["drift"].items():
            text["bpb"] += 0.06 if name == "tinystories_sample" else 0.0

    for path in (results / "real_model/reported/runs").glob("naive-s?-????????????.json"):
        edit(path, worse)
    study(results, "another", "laptop", "fails", missing=[])
    after = macros(results)
    changed = {name: text for name, (text, _) in after.items() if before[name][0] != text}
    assert changed["DemoNaiveRetention"] == "12.3"
    assert changed["FisherOursLow"] == "0.57"
    naive = float(before["RealNaiveBits"][0].split()[0])
    assert float(changed["RealNaiveBits"].split()[0]) == pytest.approx(naive + 0.06, abs=0.011)
    assert int(changed["ClaimsFails"]) == int(before["ClaimsFails"][0]) + 1
    expected = {"DemoNaiveRetention", "FisherOursLow", "RealNaiveBits", "ClaimsFails", "StudiesRun", "StudiesPlanned"}
    assert set(changed) == expected


def test_results_against_the_text_stop_it(results: Path) -> None:
    def heal(content: Any) -> None:
        for text in content["rows"][-1]["drift"].values():
            text["bpb"] = 1.0

    for path in (results / "real_model/reported/runs").glob("lora-s?-????????????.json"):
        edit(path, heal)
    with pytest.raises(ValueError, match="no longer show what the text says: LoRA"):
        generate.generate(results)


@pytest.mark.parametrize("key", [part.key for part in generate.PARTS])
def test_what_is_missing_is_said_to_be_not_run(results: Path, key: str) -> None:
    part = next(part for part in generate.PARTS if part.key == key)
    before = generate.generate(results)
    assert f"notrun-{key}.tex" not in before.files
    (results / part.needs[0]).unlink()
    after = generate.generate(results)
    assert latex.code(part.command) in after.files[f"notrun-{key}.tex"].decode()
    gone = set(before.macros) - set(after.macros)
    assert gone
    lines = after.files["macros.tex"].decode()
    assert f"have@{key}" not in lines and all(f"\\{name}}}" not in lines for name in gone)


def test_studies_are_sections_or_not_run(results: Path) -> None:
    study(results, "begun", "laptop", "not run", missing=["rates: naive, seed 2"])
    study(results, "made_up", "gpu", "not run", missing=["rates: naive, seed 2"])
    study(results, "seconds", "smoke", "holds", missing=[])
    text = generate.generate(results).files["studies.tex"].decode()
    assert r"\subsection{Made up}" in text and "Scale laptop" in text, "the concluded scale, not a larger one begun"
    assert r"$\rho$ is $\ge$ 50 \% \& more" in text and r"\textbf{holds}" in text
    assert r"$-$7 points (95\% over seeds: $-$8 to .1, n = 3)" in text
    assert r"figures/study-made-up.pdf" in text
    assert "1 of 12 runs are missing" in text and "seconds" not in text
    for name in studies.scripts():
        assert latex.code(name) in text or latex.escape(studies.title(name)) in text


def test_every_part_has_its_section() -> None:
    text = "\n".join(path.read_text("utf-8") for path in TEXTS)
    for part in generate.PARTS:
        assert rf"\result{{{part.key}}}" in text and (PAPER / "sections" / f"{part.key}.tex").exists()


def test_nothing_run_at_all_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = generate.generate(tmp_path / "empty")
    assert all(f"notrun-{part.key}.tex" in out.files for part in generate.PARTS)
    assert out.macros["StudiesRun"][0] == "0" and not any(path.startswith("figures") for path in out.files)


def test_every_reference_is_cited_and_complete() -> None:
    text = "\n".join(path.read_text("utf-8") for path in TEXTS)
    cited = {key.strip() for keys in re.findall(r"\\[cC]ite[tp]?\{([^}]*)\}", text) for key in keys.split(",")}
    entries = re.split(r"^@", (PAPER / "references.bib").read_text("utf-8"), flags=re.MULTILINE)[1:]
    keys = [re.match(r"\w+\{([^,]+),", entry)[1] for entry in entries]  # type: ignore[index]
    assert len(keys) == len(set(keys)) and set(keys) == cited
    for key, entry in zip(keys, entries, strict=True):
        fields = set(re.findall(r"^  (\w+) = \{", entry, re.MULTILINE))
        assert {"author", "title", "year"} <= fields and fields & {"url", "doi", "eprint"}, key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % & a_b #1 {x}", r"50 \% \& a\_b \#1 \{x\}"),
        ("ΔCE ≤ λ·θ", r"$\Delta$CE $\le$ $\lambda$$\cdot$$\theta$"),
        ("−3 ± 2 × 10²", r"$-$3 $\pm$ 2 $\times$ 10$^2$"),
        ("Büyükakyüz", "Büyükakyüz"),
    ],
)
def test_text_is_set_literally(text: str, expected: str) -> None:
    assert latex.escape(text) == expected


def test_text_that_latex_would_lose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'☃' \(U\+2603\)"):
        latex.escape("a ☃")


def test_powers_of_ten() -> None:
    assert latex.power(3e-4) == r"$3\times10^{-4}$"
    assert latex.power(1e-12) == r"$10^{-12}$" and latex.power(5.2e-7) == r"$5.2\times10^{-7}$"


@pytest.mark.parametrize(
    ("name", "value"), [("B16", 1.0), ("lower", 1.0), ("Fine", float("nan")), ("Fine", ""), ("Twice", 1.0)]
)
def test_a_macro_without_a_name_or_a_value_is_refused(name: str, value: float | str) -> None:
    out = latex.Output()
    out.macro("Twice", 2.0, "results/x")
    with pytest.raises(ValueError, match=name):
        out.macro(name, value, "results/x")


def test_who_is_cited_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    entry = re.search(r"@software\{forgetting,\n(.*?)\n\}", readme, re.DOTALL)
    assert entry is not None
    fields = dict(re.findall(r"(\w+) = \{+(.*?)\}+,?$", entry[1], re.MULTILINE))
    assert fields["title"] == citation["title"] and fields["version"] == citation["version"]
    assert fields["author"] == citation["authors"][0]["name"] and fields["year"] == citation["date-released"][:4]
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_what_is_not_installed_is_named_in_a_line(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    done = subprocess.run([make, "-s", "-C", str(PAPER)], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode and "error: latexmk is not installed; on Debian: apt-get install latexmk" in done.stderr
    bare = [sys.executable, "-I", "-S", str(PAPER / "generate.py")]
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(r"error: .* cannot import \S+: run `make install`.*\n", done.stderr)


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """A copy of the article without what was generated."""
    if shutil.which("latexmk") is None or shutil.which("pdflatex") is None:
        pytest.skip("latexmk and pdflatex are not installed; the article cannot be built here")
    folder = tmp_path / "paper"
    shutil.copytree(PAPER, folder, ignore=shutil.ignore_patterns("generated", "build", "*.pdf", "__pycache__"))
    return folder


def test_it_builds(results: Path, paper: Path) -> None:
    generate.write(generate.generate(results), paper / "generated")
    command = ["latexmk", "-silent", "-pdf", "-halt-on-error", "-interaction=nonstopmode", "forgetting.tex"]
    done = subprocess.run(command, cwd=paper, capture_output=True, text=True)
    log = (paper / "forgetting.log").read_text("latin-1")
    assert done.returncode == 0 and (paper / "forgetting.pdf").stat().st_size > 50_000, log[-2000:]
    assert "undefined" not in log
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", log)]
    assert not [points for points in wide if points > 5], "a line or a table runs off the page"


def test_it_builds_where_nothing_was_run(paper: Path) -> None:
    (paper / "empty").mkdir()
    generate.write(generate.generate(paper / "empty"), paper / "generated")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "forgetting.tex"]
    done = subprocess.run(command, cwd=paper, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
