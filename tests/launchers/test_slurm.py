"""The array script: what bash makes of it, and that its tasks do their run and no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forgetting.cli import main
from forgetting.errors import UsageError
from forgetting.launchers.slurm import array_script
from forgetting.rerun import compare
from forgetting.results import ResultStore
from tests.tiny_study import tiny_study


def command(*arguments: str) -> int:
    """Run the command line in this process; return its exit code."""
    sys.argv = ["forgetting", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_an_array_of_a_study_does_what_one_process_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    one_process: ResultStore,
) -> None:
    """In a folder whose name bash would take apart: the script is made, an array task's command run as bash has it."""
    place = tmp_path / "it's $HOME & more"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", sys.argv)
    told = place / "python"
    told.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$OMP_NUM_THREADS" "$@"\n')
    told.chmod(0o755)
    (place / "tiny.yaml").write_bytes(one_process.config_path.read_bytes())
    slurm = ["--launcher", "slurm", "--dry-run", "--cpus-per-run", "3", "--gpus-per-run", "1", "--workers", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(told))
        assert command("run", "tiny.yaml", "--output", "a b/tiny", *slurm, "--sbatch", "--time=01:00:00") == 0
    script = capfd.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n#SBATCH --array=0-1%2\n")
    assert {"#SBATCH --cpus-per-task=3", "#SBATCH --gres=gpu:1", "#SBATCH --time=01:00:00"} <= set(script.splitlines())
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    ids = [run.run_id for run in tiny_study().runs()]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash"], input=script, text=True, env=environment, capture_output=True, check=True, cwd="/")
    directory, threads, *arguments = done.stdout.splitlines()
    assert (directory, threads) == (str(place), "3")
    assert arguments == ["-m", "forgetting", "resume", "a b/tiny", "--only", ids[1]]

    assert command(*arguments[2:]) == 0
    store = ResultStore(place / "a b" / "tiny")
    assert store.load(ids[0]) is None
    there, here = one_process.load(ids[1]), store.load(ids[1])
    assert there is not None and here is not None
    difference = compare(there, here, one_process.load_items(ids[1]), store.load_items(ids[1]))
    assert not difference.numbers and difference.compared > 100

    assert command("resume", "a b/tiny", *slurm) == 0
    left = re.search(r"runs=\(\n(.*?)\)", capfd.readouterr().out, re.DOTALL)
    assert left is not None and left[1].split() == [ids[0]]


def test_nothing_to_do_and_a_directive_that_is_none_are_refused() -> None:
    with pytest.raises(UsageError, match="every run is finished"):
        array_script("tiny", [])
    for directive in ("time=1", "--time=1\nrm x", "- x"):
        with pytest.raises(UsageError, match="is not an option of sbatch"):
            array_script("tiny", [(Path("a"), "b")], directives=(directive,))


def test_without_dry_run_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert command("run", "--launcher", "slurm") == 2
    assert "pipe it into sbatch" in capfd.readouterr().err and not list(tmp_path.iterdir())
