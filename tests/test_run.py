"""The loop on the embedded model: laws over whole runs, failure as a result, kill and resume."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from forgetting.checkpoint import latest_step
from forgetting.config import StudyConfig, parse_study
from forgetting.errors import UsageError
from forgetting.report import write_report
from forgetting.results import ResultStore, RunRecord
from forgetting.study import plan_study, run_study
from tests.tiny_study import tiny_study


def small_study(**changes: object) -> StudyConfig:
    values: dict = {
        "name": "small",
        "model": "micro",
        "sequence": {"name": "micro-5", "train_size": 48, "test_size": 24},
        "training": {"steps": 4, "batch_size": 8, "max_length": 96},
        "evaluation": {"suite": "micro", "limit": 8, "drift_tokens": 500, "fisher_distance": True},
        "pretraining": {"documents": 40, "held_out_documents": 8},
    }
    return parse_study(values | changes)


def two_tasks() -> dict[str, object]:
    return {"name": "micro-5", "tasks": ["new_facts", "sorting"], "train_size": 48, "test_size": 24}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultStore, list[RunRecord]]:
    folder = tmp_path_factory.mktemp("run") / "small"
    mitigations = [
        "naive",
        "low_lr:factor=1",
        "low_lr:factor=1e-9",
        "lora:r=2,merge=false",
        "replay:fraction=0.5",
    ]
    return ResultStore(folder), run_study(small_study(mitigations=mitigations), folder)


def test_matrices_have_a_row_per_task_and_one_for_the_base(
    finished: tuple[ResultStore, list[RunRecord]],
) -> None:
    store, records = finished
    for record in records:
        assert record.status == "finished"
        assert len(record.R) == len(record.G) == 6 and all(len(row) == 5 for row in record.R)
        assert all(len(row) == len(record.capabilities) for row in record.G)
        items = store.load_items(record.run_id)
        for i in range(6):
            for task, value in zip(record.tasks, record.R[i], strict=True):
                scored = items["R"][i][task.name]
                assert len(scored) == task.n_test and sum(scored) / len(scored) == pytest.approx(value)
            for capability, value in zip(record.capabilities, record.G[i], strict=True):
                scored = items["G"][i][capability.name]
                assert len(scored) == capability.n and sum(scored) / len(scored) == pytest.approx(value)


def test_all_runs_share_row_0_and_it_has_no_drift(finished: tuple[ResultStore, list[RunRecord]]) -> None:
    _, records = finished
    assert len({json.dumps([r.R[0], r.G[0]]) for r in records}) == 1
    base = records[0].rows[0]
    assert all(d.kl_forward == 0 and d.kl_reverse == 0 for d in base.drift.values()) and base.drift
    assert all(change == 0 for change in base.weight_change.values()) and base.weight_change
    assert base.fisher_distance == 0 and all(d.total_variation == 0 for d in base.drift.values())


def test_a_rate_of_nearly_zero_changes_nothing_and_naive_does(
    finished: tuple[ResultStore, list[RunRecord]],
) -> None:
    naive, same, still, lora, _ = finished[1]
    assert [row.R for row in same.rows] == [row.R for row in naive.rows]
    assert [row.drift for row in same.rows] == [row.drift for row in naive.rows]
    assert still.R[-1] == still.R[0] and still.G[-1] == still.G[0]
    held_out = next(name for name in naive.rows[-1].drift if name != "task_inputs")
    assert naive.rows[-1].drift[held_out].kl_forward > 1e-3 > still.rows[-1].drift[held_out].kl_forward
    assert naive.rows[-1].drift[held_out].total_variation > 1e-3 > still.rows[-1].drift[held_out].total_variation
    assert naive.rows[-1].fisher_distance > 1e-3 > still.rows[-1].fisher_distance > 0
    assert lora.rows[-1].fisher_distance > 0
    off = lora.rows[-1].views["adapter_off"]
    assert off["R"] == lora.R[0] and off["G"] == lora.G[0]


def test_costs_count_what_was_trained(finished: tuple[ResultStore, list[RunRecord]]) -> None:
    naive, _, _, lora, replay = finished[1]
    assert [cost.steps for cost in naive.cost.tasks] == [4] * 5
    assert all(cost.examples == {"task": 32} for cost in naive.cost.tasks)
    assert [cost.steps for cost in replay.cost.tasks] == [8] * 5
    assert all(0 < cost.examples["pretraining"] < 64 for cost in replay.cost.tasks)
    assert lora.cost.trainable_parameters < naive.cost.trainable_parameters == naive.cost.parameters
    assert all(cost.flops > 0 and cost.seconds > 0 and len(cost.log) == cost.steps for cost in naive.cost.tasks)
    assert naive.cost.peak_memory_bytes > 1e8


def test_a_finished_study_runs_nothing_again(finished: tuple[ResultStore, list[RunRecord]]) -> None:
    store, records = finished
    before = {path: path.stat().st_mtime_ns for path in (store.folder / "runs").iterdir()}
    plan = plan_study(store.config(), store.folder)
    assert not plan.left and all(run.finished for run in plan.runs)
    assert run_study(store.config(), store.folder) == records
    assert {path: path.stat().st_mtime_ns for path in (store.folder / "runs").iterdir()} == before
    assert not (store.folder / "checkpoints").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_run_is_begun_after_the_hours_given(tmp_path: Path, workers: int) -> None:
    config = small_study(mitigations=["naive", "low_lr:factor=0.5", "low_lr:factor=0.1"])
    assert run_study(config, tmp_path / "s", workers=workers, hours=0) == []
    with pytest.raises(UsageError, match="hours = -1"):
        run_study(config, tmp_path / "s", hours=-1)


def test_references_and_curves_through_whole_runs(tmp_path: Path) -> None:
    """What trains nothing costs nothing; a fine-tune of the first task is that of naive; a curve has its ends."""
    config = small_study(
        mitigations=["naive", "single_task", "joint", "wise_ft:alpha=0.5,curve=0|1"],
        sequence=two_tasks(),
    )
    plan = plan_study(config.model_copy(update={"mitigations": ("joint", "cumulative")}), tmp_path / "plan")
    assert [run.steps for run in plan.runs] == [4 + 4, 4 + 8]
    naive, single, joint, wise = run_study(config, tmp_path / "small")
    assert all(record.status == "finished" for record in (naive, single, joint, wise))
    assert single.R[1] == naive.R[1] and single.cost.stored_floats == naive.cost.parameters
    once, nothing = joint.cost.tasks
    assert (once.steps, once.examples) == (8, {"task": 64}) and once.train_loss is not None
    assert (nothing.steps, nothing.flops, nothing.train_loss, nothing.log) == (0, 0, None, [])
    assert not nothing.tokens and joint.R[1] == joint.R[2] and joint.G[1] == joint.G[2]
    for row, other in zip(wise.rows[1:], naive.rows[1:], strict=True):
        assert row.views["alpha=1"] == {"R": other.R, "G": other.G}
        assert row.views["alpha=0"] == {"R": naive.R[0], "G": naive.G[0]}
        assert row.view_drift["alpha=1"] == other.drift != row.drift
        assert all(d.kl_forward == d.kl_reverse == 0 for d in row.view_drift["alpha=0"].values())
        assert 0 < row.weight_change["block 0"] < other.weight_change["block 0"]
    paths = write_report(tmp_path / "small")
    frame = paths.frame.set_index(["mitigation", "view"])
    assert frame.loc[("single_task", ""), "intransigence"] == 0
    assert frame.loc[("joint", ""), "steps"] == frame.loc[("naive", ""), "steps"] == 8


def test_a_diverging_run_fails_alone(tmp_path: Path) -> None:
    config = small_study(mitigations=["low_lr:factor=1e12", "naive"], sequence=two_tasks())
    bad, good = run_study(config, tmp_path / "small")
    assert bad.status == "failed" and bad.reason is not None and "lower the learning rate" in bad.reason
    assert len(bad.rows) >= 1 and all(math.isfinite(v) for v in bad.R[0])
    assert good.status == "finished" and len(good.rows) == 3


def test_seed_reaches_training(tmp_path: Path) -> None:
    one, two = run_study(small_study(seeds=[0, 1], sequence=two_tasks()), tmp_path / "small")
    assert one.cost.tasks[0].log != two.cost.tasks[0].log


def test_two_workers_give_the_same_bits_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: ResultStore
) -> None:
    """Each worker with one thread, as this process has, on whatever machine."""
    monkeypatch.setattr("forgetting.launch._cores", lambda: 2)
    records = run_study(tiny_study(), tmp_path / "tiny", workers=2)
    scores = [
        [[(row.R, row.G, row.drift) for row in record.rows] for record in done]
        for done in (records, one_process.records())
    ]
    assert scores[0] == scores[1] and all(len(rows) == 3 for rows in scores[0])


_LAUNCH = """
import sys
from pathlib import Path
from forgetting import launch
from forgetting.results import ResultStore
from tests.launchers import dummies
from tests.tiny_study import tiny_study
if __name__ == "__main__":
    launch._run_in_worker = dummies.never_ending
    launch.launch([(run, ResultStore(sys.argv[1])) for run in tiny_study().runs()], workers=2)
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Dummies that compute without a pause stand for the runs; launcher, pool and processes are real."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(tmp_path.glob("begun-*"))) < 2:
        time.sleep(0.1)
    workers = [int(path.name.removeprefix("begun-")) for path in tmp_path.glob("begun-*")]
    assert len(workers) == 2
    status = [Path(f"/proc/{pid}/stat") for pid in workers]
    if not all(path.exists() for path in status):
        parent.kill()
        pytest.skip("needs Linux's /proc to see the workers")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(2)
    for path in status:
        assert not path.exists() or path.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_workers_finish_their_steps_and_save_when_the_launcher_is_told_to_stop(tmp_path: Path) -> None:
    """SIGTERM to the launcher alone, as a cluster sends it: exit code 75, and a line that says how to go on."""
    config = small_study(mitigations=["naive", "freeze:first=1"], training={"steps": 4000, "batch_size": 8})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    store = ResultStore(tmp_path / "s")
    command = [sys.executable, "-m", "forgetting", "run", str(tmp_path / "study.yaml"), "--output", str(store.folder)]
    launcher = subprocess.Popen(
        [*command, "--workers", "2", "--checkpoint-every", "5 steps"], stderr=subprocess.PIPE, text=True
    )
    runs = [run.run_id for run in config.runs()]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not all(
        list(store.checkpoint_path(run).glob("row-0-step-*")) for run in runs
    ):
        time.sleep(0.05)
    assert (store.folder / ".lock").exists()
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=240)
    assert launcher.returncode == 75
    line = "interrupted by SIGTERM; finished rows and the last checkpoint are stored; continue with: forgetting resume"
    assert f"{line} {store.folder}" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (store.folder / ".lock").exists()
    for run in runs:
        record = store.load(run)
        assert record is not None and record.status == "running" and len(record.rows) == 1
        newest = latest_step(store.checkpoint_path(run), 0)
        assert newest is not None and not list(store.checkpoint_path(run).glob(".*"))


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    """A real process is killed with SIGKILL in the middle of a task, twice; it goes on from within the task.

    The second process goes on after the first kill, and this one after the second.
    """
    config = small_study(
        mitigations=["lora:r=2,merge=true+replay:fraction=0.3,source=both"],
        sequence=two_tasks() | {"tasks": ["new_facts", "sorting", "second_language"]},
        training={"steps": 12, "batch_size": 8, "max_length": 96},
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "forgetting", "run", str(tmp_path / "study.yaml")]
    command += ["--checkpoint-every", "4 steps", "--output"]

    whole, killed = ResultStore(tmp_path / "whole"), ResultStore(tmp_path / "killed")
    (expected,) = run_study(config, whole.folder, checkpoint_every="4 steps")
    assert expected.status == "finished"
    run_id = expected.run_id
    for rows in (1, 3):
        process = subprocess.Popen([*command, str(killed.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            record = killed.load(run_id)
            saved = {path.name for path in killed.checkpoint_path(run_id).glob("row-*-step-*")}
            if record is not None and len(record.rows) >= rows and f"row-{len(record.rows) - 1}-step-4" in saved:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        record = killed.load(run_id)
        assert record is not None and record.status == "running" and rows <= len(record.rows) < 4
    (resumed,) = run_study(killed.config(), killed.folder, checkpoint_every="4 steps")
    assert resumed.status == "finished" and resumed == killed.load(run_id)
    assert resumed.R == expected.R and resumed.G == expected.G
    assert [row.drift for row in resumed.rows] == [row.drift for row in expected.rows]
    assert [cost.log for cost in resumed.cost.tasks] == [cost.log for cost in expected.cost.tasks]
    assert killed.load_items(run_id) == whole.load_items(run_id)
    assert not (killed.folder / "checkpoints").exists()


def test_a_torn_checkpoint_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[ResultStore, list[RunRecord]]
) -> None:
    """With the last row cut short, the run goes on from the row before it and ends with the same numbers."""
    config = small_study()
    run_id = config.runs()[0].run_id
    reference = finished[1][0]
    assert reference.run_id == run_id

    import forgetting.run as run_module

    real, calls = run_module.train_task, []

    def stops_in_task_3(*arguments: object, **keywords: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train_task", stops_in_task_3)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "b")
    store = ResultStore(tmp_path / "b")
    checkpoints = store.checkpoint_path(run_id)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["row-1", "row-2"]
    weights = checkpoints / "row-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run_study(config, tmp_path / "b")[0].R == reference.R
    assert len(calls) == 3 + 4


def test_changed_data_or_code_of_ones_own_is_refused(tmp_path: Path) -> None:
    from forgetting.run import _setting

    lines = [json.dumps({"prompt": f"box {i}:", "completion": " red"}) for i in range(20)]
    data, mine = tmp_path / "own.jsonl", tmp_path / "mine.py"
    data.write_text("\n".join(lines))
    mine.write_text("from forgetting import Mitigation\nclass Mine(Mitigation):\n    pass\n")
    sequence = {"name": "own", "tasks": [{"name": "own", "train": str(data)}]}
    config = small_study(sequence=sequence, mitigations=[str(mine)])
    (record,) = run_study(config, tmp_path / "s")
    assert record.status == "finished" and record.run_id.startswith("mine-s0-")
    assert ResultStore(tmp_path / "s").record_path(record.run_id).parent == tmp_path / "s" / "runs"
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(UsageError, match=r"mine\.py changed since it was begun"):
        run_study(config, tmp_path / "s")
    mine.write_text(mine.read_text().removesuffix("# changed\n"))
    data.write_text("\n".join(lines).replace("red", "blue"))
    _setting.cache_clear()
    with pytest.raises(UsageError, match="data changed since it was begun"):
        run_study(config, tmp_path / "s")


def test_an_error_in_a_mitigation_of_ones_own_fails_that_run_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from forgetting import Mitigation\nclass Mine(Mitigation):\n"
        "    def after_step(self, model, learning_rate):\n        raise TypeError('oops')\n"
    )
    bad, good = run_study(small_study(mitigations=[str(mine), "naive"], sequence=two_tasks()), tmp_path / "s")
    assert bad.status == "failed" and bad.reason == "TypeError: oops (mine.py, line 4)"
    assert good.status == "finished"


def test_oracles_and_prompts_over_a_whole_run(tmp_path: Path) -> None:
    mitigations = ["in_context:shots=1", "task_lora:r=2", "prompt_tuning:length=4"]
    config = small_study(
        mitigations=mitigations,
        sequence={"name": "micro-tuning", "train_size": 32, "test_size": 16},
        training={"steps": 2, "batch_size": 8, "max_length": 96},
        evaluation={"suite": "micro", "limit": 4, "drift_tokens": 200},
    )
    in_context, task_lora, prompt = run_study(config, tmp_path / "small")
    assert all(record.status == "finished" for record in (in_context, task_lora, prompt))
    base = in_context.rows[0]
    for row in in_context.rows:
        assert row.G == base.G and set(row.weight_change.values()) == {0.0}
        assert all(drift.kl_forward == 0 for drift in row.drift.values())
    assert [cost.steps for cost in in_context.cost.tasks] == [0] * (len(base.R))
    assert in_context.R[1][1:] == base.R[1:]  # a task that is not met yet has no examples in context
    for record in (task_lora, prompt):
        for row in record.rows[1:]:
            assert row.views["adapter_off"] == {"R": base.R, "G": base.G}
            assert any(drift.kl_forward > 0 for drift in row.drift.values())
    assert task_lora.R[1][1:] == base.R[1:] and task_lora.R[-1][0] == task_lora.R[1][0]
    assert all(set(row.weight_change.values()) == {0.0} for row in prompt.rows)
