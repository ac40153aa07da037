"""The command line: help at once, lists, a run from flags, a plan, and one line and code 2 for every mistake."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from forgetting.cli import main


def forgetting(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "forgetting", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['forgetting','--help']\n"
        "from forgetting.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pydantic', 'lm_eval', 'seaborn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "demo" in done.stdout, done.stderr


def test_fisher_imports_with_torch_alone() -> None:
    code = (
        "import sys, forgetting.fisher\n"
        "names = {'transformers', 'pandas', 'pydantic', 'lm_eval', 'peft', 'datasets'} & set(sys.modules)\n"
        "assert not names, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve() -> None:
    import forgetting as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def own_jsonl(path: Path, lines: int = 50) -> Path:
    colours = ("red", "blue", "green")
    rows = [
        {"prompt": f"box {i} colour:", "completion": f" {colours[i % 3]}", "choices": [f" {c}" for c in colours]}
        for i in range(lines)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SMALL = ["--steps", "3", "--batch-size", "8", "--limit", "5", "--set", "pretraining.documents=20"]


def test_own_jsonl_from_flags_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run is a process of its own, as a user starts it; what comes before and after it is done here."""

    def here(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forgetting", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capfd.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    own_jsonl(tmp_path / "own.jsonl")
    flags = ["--model", "micro", "--data", "own.jsonl", "--mitigation", "naive", "--mitigation", "low_lr", *SMALL]
    code, said, _ = here("run", *flags, "--name", "own", "--dry-run")
    assert code == 0 and "2 of 2 runs to do over 1 tasks (own), 6 steps, about" in said
    assert not (tmp_path / "results").exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = forgetting("run", *flags, "--name", "own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 120  # of the processor, not by the clock
    folder = tmp_path / "results" / "own"
    assert len(list((folder / "runs").glob("*.json"))) == 2
    page = (folder / "report.html").read_text()
    assert "low_lr" in page and "naive" in page
    assert "report.html" in done.stdout and "naive" in done.stdout
    code, _, said = here("run", *flags, "--name", "own", "--seeds", "2")
    assert code == 2 and "holds another study (seeds: [0] there, [0, 1] here)" in said
    (folder / "summary.csv").unlink()
    code, _, _ = here("report", str(folder))
    assert code == 0 and (folder / "summary.csv").exists()


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(what: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("forgetting.display.print_list", interrupted)
    monkeypatch.setattr(sys, "argv", ["forgetting", "list", "models"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and "continue with: forgetting resume" in capsys.readouterr().err
    monkeypatch.setattr("forgetting.audit.run.audit_samples", lambda *_: interrupted(""))
    monkeypatch.setattr(sys, "argv", ["forgetting", "audit", "--from-samples", "a", "b"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 130 and "start it again" in said and "resume" not in said


def test_a_mitigation_shows_all_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["forgetting", "list", "mitigations", "wise_ft"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Wortsman" in shown and "alpha" in shown and "curve" in shown


@pytest.mark.parametrize("what", ["mitigations", "sequences", "suites", "models"])
def test_lists(what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forgetting", "list", what])
    with pytest.raises(SystemExit) as stop:
        main()
    expected = {"mitigations": "replay", "sequences": "micro-5", "suites": "blimp", "models": "micro"}
    assert stop.value.code == 0 and expected[what] in capsys.readouterr().out


BAD_JSONL = {
    "cut.jsonl": '{"prompt": "a", "completion": " b"}\n{"prompt": "a"',
    "empty.jsonl": "",
    "list.jsonl": "[1]\n",
    "one.jsonl": '{"prompt": "a", "completion": " b"}\n',
    "missing.jsonl": '{"promt": "a", "completion": " b"}\n',
    "number.jsonl": '{"prompt": 3, "completion": " b"}\n',
}
BAD_YAML = {
    "torn.yaml": "name: [a\n",
    "key.yaml": "name: a\nmodle: micro\n",
    "twice.yaml": "name: a\nsequence:\n  name: micro-5\n  tasks: [sorting, sorting]\n",
    "own_twice.yaml": (
        "name: a\nsequence:\n  name: s\n  tasks:\n"
        "    - {name: x, train: good.jsonl}\n    - {name: x, train: good.jsonl}\n"
    ),
    "list.yaml": "- a\n",
    "training.yaml": "name: a\ntraining: [1]\n",
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--model", "mirco"], "did you mean 'micro'?"),
        (["run", "--model", "./nowhere"], "model './nowhere'"),
        (["run", "--sequence", "micro5"], "did you mean 'micro-5'?"),
        (["run", "--mitigation", "repley"], "did you mean 'replay'?"),
        (["run", "--mitigation", "ewc:strenght=1"], "did you mean 'strength'?"),
        (["run", "--mitigation", "replay:fraction=2"], "fraction = '2'"),
        (["run", "--mitigation", "ewc+lora"], "write lora+ewc"),
        (["run", "--mitigation", "freeze:first=99"], "first = 99: the model has"),
        (["run", "--suite", "mikro"], "did you mean 'micro'?"),
        (["run", "--suite", "./no-folder"], "./no-folder"),
        (["run", "--set", "training.pakcing=true"], "did you mean 'packing'?"),
        (["run", "--set", "training.packing"], "is not key=value"),
        (["run", "--set", "model.name=x"], "model"),
        (["run", "--learning-rate", "-1"], "training.learning_rate = -1"),
        (["run", "--steps", "0"], "training.steps = 0"),
        (["run", "--limit", "0"], "evaluation.limit = 0"),
        (["run", "--name", "../x"], "name = '../x'"),
        (["run", "--sequence", "micro-5", "--data", "good.jsonl"], "--sequence and --data are both given"),
        (["run", "--data", "absent.jsonl"], "absent.jsonl"),
        (["run", "--data", "cut.jsonl"], "line 2"),
        (["run", "--data", "empty.jsonl"], "empty"),
        (["run", "--data", "list.jsonl"], "line 1"),
        (["run", "--data", "one.jsonl"], "one"),
        (["run", "--data", "missing.jsonl"], "did you mean 'promt'"),
        (["run", "--data", "number.jsonl"], "prompt"),
        (["run", "--sequence", "trace"], "data_dir"),
        (["run", "--sequence", "long-sequence", "--data-dir", "empty"], "mnli"),
        (["run", "--pretraining", "absent.txt"], "absent.txt"),
        (["run", "torn.yaml"], "not YAML"),
        (["run", "key.yaml"], "did you mean 'model'?"),
        (["run", "twice.yaml"], "sorting"),
        (["run", "own_twice.yaml"], "task 'x' occurs twice"),
        (["run", "list.yaml"], "holds list"),
        (["run", "absent.yaml"], "absent.yaml"),
        (["run", "--output", "good.jsonl"], "is a file"),
        (["run", "--modle", "micro"], "--model"),
        (["plan", "training.yaml", "--batch-size", "8"], "training is [1], which has no keys"),
        (["resume", "empty"], "has no study.yaml"),
        (["resume", "begun", "--only", "x", "--workers", "2"], "--workers: --only does one run"),
        (["resume", "begun", "--only", "x", "--hours", "0"], "--hours: --only does one run"),
        (["resume", "begun", "--only", "x", "--launcher", "ray"], "--launcher: --only does one run"),
        (["resume", "begun", "--only", "x", "--dry-run"], "--dry-run: --only does one run"),
        (["resume", "begun", "--only", "x", "--cpus-per-run", "2"], "--cpus-per-run: is for"),
        (["resume", "begun", "--only", "x", "--gpus-per-run", "0"], "--gpus-per-run: is for"),
        (["resume", "begun", "--only", "x", "--address", "auto"], "--address: is for"),
        (["resume", "begun", "--only", "x", "--sbatch", "--time=1"], "--sbatch: is for"),
        (["report", "empty"], "has no study.yaml"),
        (["list", "mitigation"], "did you mean 'mitigations'?"),
        (["list", "mitigations", "ewcc"], "did you mean 'ewc'?"),
        (["run", "--model", "micro", "--set", "sequence.tst_size=2"], "did you mean 'test_size'?"),
        (["list", "suites", "blimp"], "leave the name away"),
        (["micro", "pretrain", "--size", "7B"], "7B"),
        (["demo", "--workers", "0"], "workers"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own_jsonl(tmp_path / "good.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.yaml").write_text("name: begun\n")
    for name, text in {**BAD_JSONL, **BAD_YAML}.items():
        (tmp_path / name).write_text(text)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["forgetting", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capfd.readouterr()
    assert stop.value.code == 2
    assert said in captured.err, captured.err
    assert "Traceback" not in captured.err
    if captured.err.startswith("error: "):  # the rest is typer's own usage box
        assert captured.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs a folder root cannot write")
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["forgetting", "run", *SMALL, "--output", "/proc/self/study"])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capfd.readouterr()
    assert stop.value.code == 2 and "cannot be written" in captured.err and captured.err.count("\n") == 1
