"""Each input that once gave a traceback or did not end, by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from forgetting.config import TaskConfig, parse_study, read_yaml
from forgetting.errors import UsageError
from forgetting.evaluation.local_data import _read
from forgetting.fisher.storage import DiagonalFisher
from forgetting.mitigations import build_mitigation
from forgetting.results import ResultStore
from forgetting.tasks.build import load_task
from forgetting.tasks.files import parse_json
from tests.report.conftest import write_study
from tests.robustness.fuzz import no_longer_than


@pytest.mark.parametrize("value", ['!!float ""', "!!int ''", "!!bool maybe", "!!timestamp soon", "2001-13-45"])
def test_a_yaml_tag_with_a_value_that_does_not_fit_it(tmp_path: Path, value: str) -> None:
    (tmp_path / "s.yaml").write_text(f"name: {value}\n")
    with pytest.raises(UsageError, match=r"not YAML: .+"):
        read_yaml(tmp_path / "s.yaml")


def test_a_few_lines_that_stand_for_gigabytes() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    values = yaml.safe_load(text)
    with no_longer_than(20), pytest.raises(UsageError, match=r"^study: name = \[\["):
        parse_study({"name": values["a11"]})


def test_more_seeds_than_there_are_and_very_many() -> None:
    with no_longer_than(20):
        with pytest.raises(UsageError, match="seeds = 1000000000000: is more than the 4000000 seeds"):
            parse_study({"name": "s", "seeds": 10**12})
        assert len(parse_study({"name": "s", "seeds": 100_000}).seeds) == 100_000


@pytest.mark.parametrize("field", ["learning_rate", "epochs", "weight_decay", "max_grad_norm"])
def test_an_infinite_setting(field: str) -> None:
    with pytest.raises(UsageError, match=f"training.{field} = inf: Input should be a finite number"):
        parse_study({"name": "s", "training": {field: float("inf")}})


def test_an_infinite_option_of_a_mitigation() -> None:
    with pytest.raises(UsageError, match="strength = 'inf': Input should be a finite number"):
        build_mitigation("ewc:strength=inf")


def test_half_of_a_character_in_a_data_file() -> None:
    with pytest.raises(UsageError, match=r"f, line 3: holds half of a character"):
        parse_json('{"prompt": "\\ud800"}', "f", line=3)
    assert parse_json('"\\ud83d\\ude00"', "f") == "😀"


def task(path: Path, form: str) -> None:
    load_task(TaskConfig.model_validate({"name": "t", "train": str(path), "format": form}))


@pytest.mark.parametrize("form", ["jsonl", "superni", "trace", "images", "hub"])
def test_the_home_of_somebody_unknown(form: str) -> None:
    with pytest.raises(UsageError, match=r"'~nobody-here/x': could not determine home directory"):
        task(Path("~nobody-here/x"), form)


def test_a_null_character_in_a_files_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the name of a file"):
        task(tmp_path / "a\x00b", "jsonl")


def test_a_superni_definition_that_is_no_text(tmp_path: Path) -> None:
    content = {"Definition": [5], "Instances": [{"input": "a", "output": "b"}] * 5}
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"'Definition' is \[5\], not text or a list of texts"):
        task(tmp_path / "t.json", "superni")


IMAGES = np.zeros((6, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (
            lambda file: np.savez(file, images=IMAGES, labels=np.array([0, 1, 2, 3, 4, 2**62])),
            "give labels below 100000",
        ),
        (lambda file: np.savez(file, images=IMAGES[:, :0], labels=np.arange(6)), "give uint8"),
        (lambda file: np.save(file, IMAGES), "is not an npz file"),
        (lambda file: file.write(b""), "is not an npz file"),
    ],
    ids=["huge label", "no pixels", "npy", "empty"],
)
def test_images_that_are_none(tmp_path: Path, save: Callable[[BinaryIO], None], said: str) -> None:
    path = tmp_path / "images.npz"
    with open(path, "wb") as file:
        save(file)
    with no_longer_than(20), pytest.raises(UsageError, match=said):
        task(path, "images")


@pytest.mark.parametrize(
    ("about", "value", "said"),
    [
        ({"examples": 1}, 1.0, "not one of a diagonal Fisher"),
        ({"samples": None}, 1.0, "not one of a diagonal Fisher"),
        ({}, -1.0, "is not a mean of squares"),
        ({}, float("nan"), "is not a mean of squares"),
    ],
)
def test_a_fisher_file_without_its_counts_or_with_impossible_values(
    tmp_path: Path, about: dict[str, object], value: float, said: str
) -> None:
    whole = {"format": "forgetting.diagonal_fisher", "estimator": "sample", "samples": 1, "examples": 4, "tokens": 9}
    given = {"format": whole["format"], "estimator": "sample", **about} if "examples" in about else {**whole, **about}
    save_file({"w": torch.full((2,), value)}, tmp_path / "f", metadata={"about": json.dumps(given)})
    with pytest.raises(ValueError, match=said):
        DiagonalFisher.load(tmp_path / "f")


def test_a_fisher_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        DiagonalFisher.load(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b", b"text", gzip.compress(b"[1]", mtime=0), gzip.compress(b'{"R": [], "G": [{}]}', mtime=0)],
)
def test_damaged_items(tmp_path: Path, content: bytes) -> None:
    store = write_study(tmp_path / "s", mitigations=["naive"], seeds=[0])
    run_id = store.config().runs()[0].run_id
    store.items_path(run_id).write_bytes(content)
    with pytest.raises(UsageError, match="delete"):
        store.load_items(run_id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["rows"][1]["R"].pop(), "row 1 has 4 and 8 scores of 5 tasks and 8 capabilities"),
        (lambda record: record["rows"][0]["G"].append(1.0), "row 0 has 5 and 9 scores"),
        (lambda record: record["rows"].pop(), "is finished with 5 rows of 5 tasks"),
        (lambda record: record["config"].update(seed=7), "with a configuration of 'naive-s7-"),
        (lambda record: record["cost"]["tasks"].append(record["cost"]["tasks"][0]), "the cost of 6 tasks of 5"),
    ],
)
def test_a_record_that_contradicts_itself(tmp_path: Path, change: Callable[[dict], object], said: str) -> None:
    store = write_study(tmp_path / "s", mitigations=["naive"], seeds=[0])
    path = store.record_path(store.config().runs()[0].run_id)
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=said):
        list(ResultStore(tmp_path / "s").records())


@pytest.mark.parametrize("content", [b"\xc0", b'[1, "a"]', b'{"a": 1}\n{"a": "b"}\n', b"{"])
def test_a_suites_local_data_that_are_no_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not JSON or JSON lines of objects with the same columns"):
        _read([path])


def test_a_columns_name_with_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"a\\nb": "x"}\n')
    with pytest.raises(UsageError, match=r"known: 'a\\nb'$"):
        task(tmp_path / "d.jsonl", "jsonl")
