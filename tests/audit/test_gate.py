"""The example of a CI gate, and the README's commands: they parse, and the gate fails where it must."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from forgetting.cli import app

ROOT = Path(__file__).parents[2]
JOB: dict[str, Any] = yaml.safe_load((ROOT / "experiments" / "audit_gate.yml").read_text())["jobs"]["audit"]
SCRIPT: str = next(step["run"] for step in JOB["steps"] if "cost" in step.get("name", ""))


def parsed(line: str) -> dict[str, Any]:
    command = get_command(app).commands["audit"]  # type: ignore[attr-defined]
    return command.make_context("audit", shlex.split(line, comments=True)[2:]).params


def test_the_commands_parse() -> None:
    line = next(line for line in SCRIPT.splitlines() if line.startswith("forgetting audit"))
    given = parsed(line.partition(" || ")[0])
    assert given["sequential"] and not given["drift"] and given["output"] == Path("audit") and len(given["suite"]) == 3
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/audit.md")]
    (short,), shown = (re.findall(r"^forgetting audit .*$", page, re.MULTILINE) for page in pages)
    assert len(shown) == 2
    assert parsed(short)["data"] == parsed(shown[0])["data"] == Path("own.jsonl")
    assert parsed(shown[1])["from_samples"] == (Path("logs/base"), Path("logs/tuned"))
    options = {option for each in get_command(app).commands["audit"].params for option in each.opts}  # type: ignore[attr-defined]
    named = set(re.findall(r"`(--[a-z-]+)", pages[1])) - {"--log_samples"}
    assert named and named - {"--help", "--no-drift", "--model", "--log"} <= options


@pytest.mark.parametrize(("code", "fails"), [(0, 0), (3, 3), (4, 0), (2, 2), (1, 1)])
def test_a_regression_fails_the_pull_request(code: int, fails: int, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "forgetting"
    command.parent.mkdir()
    wrote = code in (0, 3, 4)
    verdict = '{"why": "too few"}'
    body = f"mkdir audit; echo card > audit/model_card.md; echo '{verdict}' > audit/verdict.json\n" if wrote else ""
    command.write_text(f"#!/bin/sh\n{body}exit {code}\n")
    command.chmod(0o755)
    summary = tmp_path / "summary.md"
    summary.touch()
    environment = {
        **os.environ,
        **JOB["env"],
        "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    # As GitHub runs a step's script.
    done = subprocess.run(["bash", "-e", "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == fails, done.stderr
    assert summary.read_text() == ("card\n" if wrote else "")
    assert ("::warning::the audit is inconclusive: too few" in done.stdout) == (code == 4)
