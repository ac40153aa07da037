"""The package itself, and the named studies: what was claimed, what was published, and what our runs say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from forgetting.studies import headline, scripts
from parts.latex import Output, breakable, code, escape, power, require, tabular
from parts.sources import commits, found_in, provenances, read_json

SCALES = ("gpu", "laptop")
"""The scales whose verdicts count, the one that is preferred first."""
ACRONYMS = {"bwt": "BWT", "ewc": "EWC", "kl": "KL", "lora": "LoRA", "rl": "RL"}
EXACTNESS = "tests/fisher/test_exactness.py"
RUNS = "{study}/{scale}/*/runs/*-s*-????????????.json"
"""The records of a study's runs, below the results."""
COLUMNS = ">{\\raggedright\\arraybackslash}p"


def package(out: Output) -> None:
    """The registry's table and the version."""
    from forgetting.analysis.stats import seed_interval
    from forgetting.mitigations import get_mitigation, mitigation_names

    source = "forgetting/mitigations"
    classes = {name: get_mitigation(name) for name in mitigation_names()}
    out.macro("PackageVersion", found_in("CITATION.cff", r"\nversion: (\S+)"), "CITATION.cff")
    level = seed_interval([0.0, 1.0]).level
    out.macro("Level", rf"{100 * level:g}\,\%", "forgetting/analysis/stats.py")
    out.macro("FisherTolerance", power(float(found_in(EXACTNESS, r"\nTOLERANCE = (\S+)"))), EXACTNESS)
    out.macro("MitigationCount", len(classes), source)
    out.macro("ReferenceCount", sum(cls.reference for cls in classes.values()), source)
    rows = [[code(name), escape(cls.summary), paper(cls.paper)] for name, cls in classes.items()]
    columns = f"l{COLUMNS}{{0.42\\linewidth}}{COLUMNS}{{0.41\\linewidth}}"
    table = tabular(f"@{{}}{columns}@{{}}", ["name", "what it does", "paper"], rows, kind="longtable")
    caption = r"\caption{The mitigations, from the package's registry.}\label{tab:mitigations}\\"
    table = table.replace(r"\toprule", caption + "\n" + r"\toprule", 1)
    out.write("mitigations.tex", rf"{{\scriptsize\setlength{{\tabcolsep}}{{3pt}}{table}}}" + "\n")


def paper(text: str) -> str:
    """At most two of a method's papers, without their titles where an arXiv id names them."""
    papers = []
    for one in text.split("; ")[:2]:
        match = re.fullmatch(r"(.+? \d{4})(?:, .+?)?, (arXiv \S+)", one)
        papers.append(f"{match[1]}, {match[2]}" if match else one)
    return escape("; ".join(papers))


def evaluation(results: Path, out: Output) -> None:
    """How long the evaluation of capabilities takes beside lm-eval's own."""
    source = "results/benchmarks/evaluation/evaluation.json"
    content = read_json(results / "benchmarks/evaluation/evaluation.json")
    require(all(part["flips"] == 0 for part in content["found"]), "no item flips against lm-eval's own")
    parts = {part["shots"]: part for part in content["found"]}
    shots = max(parts)
    out.macro("EvaluationItems", int(parts[0]["items"]), source)
    out.macro("EvaluationRatio", float(parts[0]["ratio"]["simple_evaluate"]["median"]), source)
    out.macro("EvaluationFewShotRatio", float(parts[shots]["ratio"]["simple_evaluate"]["median"]), source)
    out.macro("EvaluationShots", shots, source)
    out.macro("EvaluationRepeats", min(int(part["rounds"]) for part in parts.values()), source)


def verdicts(results: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """By study, scale and content of its verdicts: of the first of SCALES that is concluded, else begun."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for scale in SCALES:
        for path in sorted(results.glob(f"*/{scale}/verdicts.json")):
            content = read_json(path)
            name = path.parents[1].name
            if name not in found or (found[name][1]["missing"] and not content["missing"]):
                found[name] = (scale, content)
    return found


def studies(results: Path, out: Output) -> None:
    """A subsection per study with verdicts, a list of those without, and how many claims hold.

    The question of a study is framed by hand in ``sections/studies/<name>.tex``; where there is none, by the first line
    of its script.
    """
    questions = {name: headline(path) for name, path in scripts().items()}
    found = verdicts(results)
    concluded = {name: entry for name, entry in found.items() if not entry[1]["missing"]}
    outcomes = [verdict["outcome"] for _, content in concluded.values() for verdict in content["verdicts"]]
    source = "results/*/*/verdicts.json"
    out.macro("StudiesPlanned", len({*questions, *found}), "experiments/*.py")
    out.macro("StudiesRun", len(concluded), source)
    for outcome in ("holds", "fails", "undecided"):
        out.macro(f"Claims{outcome.capitalize()}", outcomes.count(outcome), source)
    parts = [_section(name, scale, content, results, out) for name, (scale, content) in sorted(concluded.items())]
    waiting = sorted({*questions, *found} - set(concluded))
    if waiting:
        items = [
            rf"\item {code(name)}: {escape(questions.get(name, ''))} Not run"
            + (
                f" to its end: {len(found[name][1]['missing'])} of {found[name][1]['runs']} runs are missing."
                if name in found
                else "."
            )
            for name in waiting
        ]
        parts.append("\n".join([r"\subsection*{Not run}", r"\begin{itemize}", *items, r"\end{itemize}", ""]))
    out.write("studies.tex", "\n".join(parts))


def _section(name: str, scale: str, content: dict[str, Any], results: Path, out: Output) -> str:
    known = scripts()
    question = headline(known[name]) if name in known else ""
    framing = Path(__file__).resolve().parents[1] / "sections" / "studies" / f"{name}.tex"
    text = rf"\input{{sections/studies/{name}}}" if framing.exists() else escape(question)
    said = {verdict["claim"]: verdict for verdict in content["verdicts"]}
    rows = [
        [
            escape(claim["sentence"]),
            escape(claim["paper"]) + (f": {escape(claim['published'])}" if claim["published"] else ""),
            escape(re.sub(r"(?<![\w-])-(?=\.?\d)", "−", said[claim["key"]]["ours"])),
            rf"\textbf{{{escape(said[claim['key']]['outcome'])}}}",
        ]
        for claim in content["claims"]
    ]
    columns = f"@{{}}{COLUMNS}{{0.31\\linewidth}}{COLUMNS}{{0.31\\linewidth}}{COLUMNS}{{0.26\\linewidth}}l@{{}}"
    folder = results / name / scale
    made = ", ".join(commits(provenances(results, [RUNS.format(study=name, scale=scale)])))
    lines = [
        r"\Needspace*{12\baselineskip}",
        rf"\subsection{{{escape(title(name))}}}",
        rf"\label{{sec:study-{name.replace('_', '-')}}}",
        text,
        "",
        r"{\scriptsize\renewcommand{\arraystretch}{1.1}\setlength{\tabcolsep}{4pt}\setlength{\LTpre}{4pt}\setlength{\LTpost}{2pt}",
        tabular(columns, ["claim", "published", "ours", "verdict"], rows, kind="longtable"),
        rf"\noindent Scale {escape(scale)}, {content['runs']} runs, commit {escape(made)}:",
        rf"{code(content['command'])}\par}}",
        "",
    ]
    for picture in sorted((folder / "figures").glob("*.pdf"))[:1]:
        key = f"study-{name.replace('_', '-')}"
        out.figure(key, picture)
        lines += [rf"\studyfigure{{generated/figures/{key}.pdf}}", ""]
    return "\n".join(lines)


def title(name: str) -> str:
    """A study's name as a heading: ``LoRA learns less``."""
    words = [ACRONYMS.get(word, word) for word in name.split("_")]
    return " ".join([words[0] if words[0] in ACRONYMS.values() else words[0].capitalize(), *words[1:]])


def provenance(rows: list[tuple[str, str, list[str]]], out: Output) -> None:
    """The table of commands and commits: result, command, commits that made it."""
    cells = [[code(key), code(command), breakable(", ".join(made))] for key, command, made in rows]
    columns = f"@{{}}l{COLUMNS}{{0.56\\linewidth}}{COLUMNS}{{0.27\\linewidth}}@{{}}"
    table = tabular(columns, ["results of", "command", "made at commit"], cells)
    out.write("provenance.tex", f"\\begin{{center}}\\footnotesize\n{table}\n\\end{{center}}\n")
