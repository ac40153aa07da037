"""What the README shows works as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from forgetting.config import parse_study
from forgetting.mitigations import build_mitigation
from tests.mitigations.test_conformance import run, weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in code]
    assert len(found) == 1, (language, containing, len(found))
    return found[0]


def test_the_study_file_is_valid() -> None:
    study = parse_study(yaml.safe_load(block("yaml", "name: support")))
    assert len(study.runs()) == 9
    for mitigation in study.mitigations:
        build_mitigation(mitigation)


def test_the_mitigation_in_one_file_keeps_to_the_laws(tmp_path: Path) -> None:
    path = tmp_path / "l2sp.py"
    path.write_text(block("python", "class L2SP"))
    naive, still = weights(run("naive", tmp_path)[0]), weights(run(f"{path}:strength=0", tmp_path)[0])
    assert all(torch.equal(value, naive[name]) for name, value in still.items())
    pulled, start = weights(run(f"{path}:strength=100", tmp_path)[0]), weights(run("naive", tmp_path, tasks=[])[0])
    moved, moved_naive = (sum(float((w[n] - start[n]).norm()) for n in start) for w in (pulled, naive))
    assert 0 < moved < moved_naive


def test_the_own_data_script_writes_fifty_lines(tmp_path: Path) -> None:
    script = re.search(r"python - <<'EOF'\n(.*?)EOF", README, re.DOTALL)
    assert script is not None
    subprocess.run([sys.executable, "-c", script.group(1)], check=True, cwd=tmp_path)
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 50


def test_every_command_it_names_exists() -> None:
    from typer.main import get_command

    from forgetting.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`?forgetting (\w+)[ `]", block_free(README)))
    assert named and named <= commands


def test_every_test_it_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", README))
    assert len(named) > 15 and all((Path(__file__).parents[1] / path).is_file() for path in named)


def block_free(text: str) -> str:
    """The prose and the shell lines; not the Python."""
    return re.sub(r"```(python|yaml|bibtex)\n.*?```", "", text, flags=re.DOTALL).replace("`forgetting` fine", "")
