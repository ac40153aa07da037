"""Every file and string that a user can give, in thousands of broken forms: one line, no traceback, nothing left."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st

import forgetting.study
from forgetting.config import RunConfig, StudyConfig, TaskConfig, parse_study, read_yaml, write_yaml
from forgetting.errors import UsageError
from forgetting.evaluation.untrusted import check_task_folder
from forgetting.fisher.storage import DiagonalFisher
from forgetting.mitigations import build_mitigation, get_mitigation, mitigation_names
from forgetting.models import _check_folder
from forgetting.tasks.build import load_task
from forgetting.tasks.pretraining import read_documents
from forgetting.tasks.task import Task
from tests.robustness.fuzz import CASES, NASTY, VALUES, changed, clean, command, damaged, files, fuzz

HERE = Path(tempfile.mkdtemp(prefix="fuzz-"))
"""Rewritten for every case."""


def written(name: str, content: bytes | str) -> Path:
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# --- study files and flags ------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    **StudyConfig(name="s").model_dump(mode="json"),
    "sequence": {
        "name": "own",
        "tasks": [
            {"name": "a", "train": "a.jsonl", "columns": {"prompt": "p"}, "choices": ["x", "y"], "test_size": 3},
            {"name": "b", "format": "hub", "train": "o/d", "labels": ["x", "y"], "template": "{t}", "test": "test"},
        ],
    },
}


def check_study(values: Any) -> None:
    config = clean(lambda: parse_study(values, source="study.yaml"))
    if config is None:
        return
    text = write_yaml(config)
    assert parse_study(yaml.safe_load(text)) == config
    for run in config.runs()[:3]:
        assert RunConfig.model_validate_json(run.model_dump_json()) == run
        assert "/" not in run.run_id and run.hash in run.run_id


@fuzz(300, values=changed(STUDY))
def test_study_values(values: Any) -> None:
    if isinstance(values, dict):
        check_study(values)


TAGS = ["!!float", "!!int", "!!bool", "!!timestamp", "!!binary", "!!set", "!!omap", "!!python/name:os.system", "!x"]
FRAGMENTS = st.sampled_from(
    [*TAGS, "&a", "*a", "<<: *a", "- ", ": ", "? ", "{", "}", "[", "]", "'", '"', "|", ">", "#", "%YAML 9", "---", "\t",
     "\n", "\x00", "0x", "0b", "1:2:3", "2001-13-45", "=", "~", ".inf", ".nan", "é", "\ufeff"]
)  # fmt: skip


@fuzz(
    300,
    pieces=st.lists(FRAGMENTS | st.sampled_from(yaml.safe_dump(STUDY).splitlines(keepends=True)), max_size=12),
    damage=damaged(yaml.safe_dump(STUDY).encode()),
    which=st.booleans(),
)
def test_study_files(pieces: list[str], damage: bytes, which: bool) -> None:
    path = written("study.yaml", "".join(pieces) if which else damage)
    values = clean(lambda: read_yaml(path))
    if values is not None:
        check_study(values)


FLAGS = (
    "--set",
    "--mitigation",
    "--model",
    "--sequence",
    "--data",
    "--suite",
    "--pretraining",
    "--name",
    "--steps",
    "--learning-rate",
    "--seeds",
    "--epochs",
    "--limit",
    "--output",
    "--data-dir",
    "--hours",
    "--workers",
)
KEYS = st.sampled_from(
    ["training.steps", "training", "sequence.tasks", "evaluation.suite", "a.b", "", ".", "name", "x"]
)


@fuzz(
    100,
    flags=st.lists(
        st.tuples(st.sampled_from(FLAGS), NASTY.map(str) | st.builds("{}={}".format, KEYS, VALUES)), max_size=4
    ),
    values=st.none() | changed(STUDY),
)
def test_flags(flags: list[tuple[str, str]], values: Any) -> None:
    """Up to where the data are read: the plan is not made."""

    def planned(*arguments: object) -> None:
        raise UsageError("planned")

    given = [] if values is None else [str(written("flags/study.yaml", yaml.safe_dump(values)))]
    before = files(HERE)
    real, forgetting.study.plan_study = forgetting.study.plan_study, planned  # type: ignore[assignment]
    try:
        arguments = [part.replace("\x00", "") for flag in flags for part in flag]
        code, _ = command("run", *given, *arguments, "--dry-run")
    finally:
        forgetting.study.plan_study = real
    assert code == 2 and files(HERE) == before


# --- mitigation strings ---------------------------------------------------------------------------------------------


@st.composite
def mitigations(draw: st.DrawFn) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(mitigation_names()))
        options = []
        for _ in range(draw(st.integers(0, 3))):
            key = draw(st.sampled_from([*get_mitigation(name).Options.model_fields, "x", ""]))
            value = draw(
                NASTY.map(str) | st.sampled_from(["0", "1", "0.5", "2", "true", "both", "0|1", "1|x", "|", "=", "a=b"])
            )
            options.append(f"{key}={value}")
        parts.append(
            name + draw(st.sampled_from(["", ":"])) + ",".join(options)
            if not options
            else f"{name}:{','.join(options)}"
        )
    return draw(st.sampled_from(["+", " + ", "++"])).join(parts)


@fuzz(400, text=mitigations() | st.text(max_size=30) | NASTY.map(str))
def test_mitigation_strings(text: str) -> None:
    clean(lambda: build_mitigation(text))


# --- data -----------------------------------------------------------------------------------------------------------

ROW = {"prompt": "a question", "completion": " yes", "choices": [" yes", " no"], "label": 1}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"choices": ("yes", "no")},
    {"labels": ("no", "yes"), "columns": {"completion": "label"}},
    {"template": "{prompt}: {label}"},
    {"metric": "accuracy"},
    {"train_size": 2, "test_size": 1, "validation_size": 1},
]


def as_json(value: Any) -> str:
    return json.dumps(value, default=str)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    rows = [as_json({**ROW, "prompt": f"question {i}"}) for i in range(8)]
    for _ in range(draw(st.integers(0, 3))):
        rows[draw(st.integers(0, 7))] = as_json(draw(changed(ROW)))
    content = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(rows).encode()
    return draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content


def check_task(name: str, content: bytes, options: dict[str, Any], form: str) -> None:
    path = written(name, content)
    task = clean(
        lambda: load_task(TaskConfig.model_validate({"name": "t", "train": str(path), "format": form, **options}))
    )
    if task is not None:
        assert isinstance(task, Task)
        for example in (*task.train, *task.test):  # whatever was taken can be tokenised and stored
            json.dumps([example.prompt, example.completion, example.choices], ensure_ascii=False).encode()


@fuzz(250, content=lines(), options=st.sampled_from(OPTIONS))
def test_jsonl(content: bytes, options: dict[str, Any]) -> None:
    check_task("data.jsonl", content, options, "jsonl")


SUPERNI = {"Definition": ["Say yes."], "Instances": [{"input": f"q{i}", "output": ["yes", "y"]} for i in range(8)]}
TRACE = [{"prompt": f"q{i}", "answer": "ab"[i % 2]} for i in range(12)]


@fuzz(
    150,
    form=st.sampled_from(["superni", "trace"]),
    superni=changed(SUPERNI).map(as_json),
    trace=changed(TRACE).map(as_json),
    labels=st.none() | changed(["yes", "no"]).map(as_json),
    damage=st.none() | damaged(json.dumps(SUPERNI).encode()),
)
def test_benchmark_files(form: str, superni: str, trace: str, labels: str | None, damage: bytes | None) -> None:
    (HERE / "labels.json").unlink(missing_ok=True)
    if labels is not None:
        written("labels.json", labels)
    check_task("train.json", damage or (superni if form == "superni" else trace).encode(), {}, form)


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


IMAGES = npz(images=np.zeros((6, 4, 4), dtype=np.uint8), labels=np.array([0, 1, 2, 0, 1, 2]))
ARRAYS = st.sampled_from(
    [np.zeros((6, 4, 4), np.uint8), np.zeros((6, 0, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros(6),
     np.arange(6), np.arange(6) - 1, np.array([0, 1, 2, 3, 4, 2**62]), np.array([2**64 - 1] * 6, np.uint64),
     np.array(3), np.array(["a"] * 6), np.zeros((6, 4, 4, 3), np.uint8), np.full(6, np.nan), np.array([True] * 6)]
)  # fmt: skip


@fuzz(150, damage=st.none() | damaged(IMAGES), images=ARRAYS, labels=ARRAYS, named=st.booleans())
def test_images(damage: bytes | None, images: Any, labels: Any, named: bool) -> None:
    content = npz(images=images, labels=labels) if damage is None else damage
    path = written("images.npz", content)
    options = {"labels": ("a", "b", "c")} if named else {}
    clean(lambda: load_task(TaskConfig(name="t", format="images", train=str(path), **options)))


@fuzz(
    100,
    content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(changed({"text": "a document"}), max_size=4).map(lambda rows: "\n".join(map(as_json, rows)).encode()),
    name=st.sampled_from(["text.txt", "text.jsonl"]),
)  # fmt: skip
def test_pretraining_text(content: bytes, name: str) -> None:
    path = written(name, content)
    clean(lambda: read_documents(str(path), "pretraining.source", 10))


@fuzz(40, source=NASTY.filter(lambda value: isinstance(value, str) and value.startswith(("/", ".", "~", "\x00"))))
def test_names_of_files(source: str) -> None:
    for form in ("jsonl", "superni", "trace", "images"):  # a folder in the hub's format is searched, and / is large
        clean(lambda form=form: load_task(TaskConfig(name="t", format=form, train=source)))
    if not Path(source.replace("\x00", "")).is_dir():
        clean(lambda: read_documents(source if source.startswith((".", "/", "~")) else f"./{source}", "data", 5))


@fuzz(15, content=lines(), options=st.sampled_from(OPTIONS))
def test_a_folder_in_the_hubs_format(content: bytes, options: dict[str, Any]) -> None:
    written("hub/train.jsonl", content)
    config = {"name": "t", "format": "hub", "train": str(HERE / "hub"), **options}
    clean(lambda: load_task(TaskConfig.model_validate(config)))


# --- models, Fisher files, lm-eval folders --------------------------------------------------------------------------

INDEX = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4}


@fuzz(
    120,
    config=changed(MODEL).map(as_json),
    index=st.none() | changed(INDEX).map(as_json),
    weights=st.binary(max_size=30),
)
def test_model_folders(config: str, index: str | None, weights: bytes) -> None:
    for name in ("config.json", "model.safetensors", "model-1.safetensors", "model-2.safetensors"):
        written(f"model/{name}", config if name == "config.json" else weights)
    (HERE / "model/model.safetensors.index.json").unlink(missing_ok=True)
    if index is not None:
        written("model/model.safetensors.index.json", index)
    clean(lambda: _check_folder(HERE / "model", "model"))


FISHER = HERE / "fisher.safetensors"
DiagonalFisher({"w": torch.rand(3, 2), "b": torch.rand(2)}, "sample", 4, 40, 1).save(FISHER)
GOOD_FISHER = FISHER.read_bytes()
ABOUT = {"format": "forgetting.diagonal_fisher", "estimator": "sample", "samples": 1, "examples": 4, "tokens": 40}


@fuzz(
    150, damage=st.none() | damaged(GOOD_FISHER), about=changed(ABOUT), value=st.sampled_from([1.0, -1.0, float("nan")])
)
def test_fisher_files(damage: bytes | None, about: Any, value: float) -> None:
    from safetensors.torch import save_file

    if damage is None:
        save_file({"w": torch.full((2,), value)}, FISHER, metadata={"about": as_json(about)})
    else:
        FISHER.write_bytes(damage)
    model = torch.nn.Linear(2, 3)
    loaded = clean(lambda: DiagonalFisher.load(FISHER), ValueError)
    if loaded is not None:
        assert all((tensor >= 0).all() for tensor in loaded.values.values()) and loaded.examples >= 0
    clean(lambda: DiagonalFisher.load(FISHER, model), ValueError)


TASK = "task: mine\ndataset_path: json\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ninclude: base.yaml\n"


@fuzz(
    100,
    pieces=st.lists(FRAGMENTS | st.sampled_from(TASK.splitlines(keepends=True)), max_size=8),
    damage=damaged(TASK.encode()),
)
def test_lm_eval_folders(pieces: list[str], damage: bytes) -> None:
    for content in ("".join(pieces), damage):
        path = written("suite/task.yaml", content)
        clean(lambda path=path: check_task_folder(path.parent))


@fuzz(100, rows=st.lists(changed(ROW), max_size=3), damage=st.none() | damaged(as_json([ROW]).encode()))
def test_suites_local_data(rows: list[Any], damage: bytes | None) -> None:
    from forgetting.evaluation.local_data import _read

    path = written("local.jsonl", damage or "\n".join(map(as_json, rows)))
    clean(lambda: _read([path]))


@pytest.mark.skipif(not CASES, reason="nothing is fuzzed")
def test_at_least_two_thousand_cases_are_generated() -> None:
    from tests.robustness import test_fuzz_results

    assert test_fuzz_results.CASES is CASES and sum(CASES.values()) >= 2000
