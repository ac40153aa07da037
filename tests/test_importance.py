"""The fisher command: file, table, figure, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from forgetting.cli import app, main
from forgetting.fisher import DiagonalFisher
from forgetting.importance import summarise_importance
from tests.models_for_tests import save_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["forgetting", "fisher", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_task_file_gives_a_file_that_does_not_depend_on_the_batch_size(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "task.jsonl"
    rows = [{"prompt": f"w{i} w{i + 1} w4", "completion": f"w{i + 2}"} for i in range(2, 12)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    for size in ("1", "4"):
        arguments = ["--data", str(data), "-o", str(tmp_path / f"{size}.safetensors"), "--batch-size", size]
        assert run(monkeypatch, str(model), *arguments, "--summary") == 0
    one, four = (DiagonalFisher.load(tmp_path / f"{size}.safetensors") for size in ("1", "4"))
    assert (one.examples, one.tokens, one.estimator) == (10, 20, "sample")  # a word and the end of each
    for name, value in one.values.items():
        torch.testing.assert_close(four.values[name], value, rtol=1e-3, atol=1e-6 * float(value.max()))
    printed = capsys.readouterr().out
    assert "10 examples, 20 predicted tokens" in printed and "self_attn.q_proj" in printed
    assert (tmp_path / "4.png").stat().st_size > 5000 and (tmp_path / "4.pdf").exists()


def test_text_is_predicted_whole_and_parameters_can_be_chosen(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = tmp_path / "text.txt", tmp_path / "f.safetensors"
    data.write_text("w2 w3 w4\n\nw5 w6\n\nw7 w8 w9\n")
    arguments = ["--data", str(data), "-o", str(output), "--estimator", "empirical", "--max-examples", "2"]
    assert run(monkeypatch, str(model), *arguments, "--parameters", "*q_proj*") == 0
    fisher = DiagonalFisher.load(output)
    assert fisher.examples == 2 and all("q_proj" in name for name in fisher.values)


def test_the_summary_sums_by_block_and_kind() -> None:
    values = {
        "model.embed.weight": torch.full((2, 3), 1.0),
        "model.layers.0.mlp.up.weight": torch.full((2, 2), 0.5),
        "model.layers.1.mlp.up.weight": torch.full((2, 2), 2.0),
        "model.layers.1.mlp.up.bias": torch.full((2,), 1.0),
    }
    frame = summarise_importance(DiagonalFisher(values, "empirical", 1, 1)).set_index(["layer", "kind"])
    assert frame.loc[(-1, "model.embed"), "total"] == 6 and frame.loc[(1, "mlp.up"), "mean"] == 2
    assert frame.loc[(1, "mlp.up.bias"), "parameters"] == 2
    assert frame["share"].sum() == pytest.approx(1) and frame.loc[(0, "mlp.up"), "share"] == pytest.approx(2 / 18)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator", "exactly"], "estimator: 'exactly' is none of exact, sample"),
        (["--backend", "gpu"], "backend: 'gpu' is none of auto"),
        (["--backend", "triton"], "backend 'triton': needs a CUDA device"),
        (["--device", "gpu"], "device: 'gpu' is not a device; give 'cpu'"),
        (["--samples", "3", "--estimator", "empirical"], "samples: 3 with estimator 'empirical'"),
        (["--parameters", "*nothing*"], "parameters: '*nothing*' fits none"),
        (["-o", "none/f.safetensors"], "the folder 'none' does not exist"),
        (["-o", "."], "is a folder; give a file"),
        (["-o", "/dev/null"], "is not a file that can be replaced"),
        (["--data", "none.txt"], "none.txt"),
        (["--data", "empty.jsonl"], "empty.jsonl"),
        (["--data", "odd.jsonl"], "no column"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    Path("text.txt").write_text("w2 w3 w4\n\nw5 w6\n")
    Path("empty.jsonl").write_text("")
    Path("odd.jsonl").write_text('{"question": "w2", "completion": "w3"}\n')
    defaults = {"--data": "text.txt", "-o": "f.safetensors"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    flat = [word for pair in (defaults | given).items() for word in pair]
    assert run(monkeypatch, str(model), *flat) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not list(tmp_path.rglob("*.safetensors*"))[1:]  # the model's own


def test_the_command_is_listed() -> None:
    assert "fisher" in {command.callback.__name__ for command in app.registered_commands if command.callback}
