"""Configuration: what is accepted, what identifies a run, and one line for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetting.config import (
    EvaluationConfig,
    RunConfig,
    SequenceConfig,
    StudyConfig,
    parse_study,
    read_yaml,
    write_yaml,
)
from forgetting.errors import UsageError


def test_yaml_round_trip_is_equal(tmp_path: Path) -> None:
    study = StudyConfig(name="s", mitigations=("naive", "ewc:strength=3"), seeds=(0, 4))
    path = tmp_path / "s.yaml"
    path.write_text(write_yaml(study))
    assert parse_study(read_yaml(path)) == study


def test_grid_is_mitigations_times_seeds_and_ids_are_unique() -> None:
    study = StudyConfig(name="s", mitigations=("naive", "lora", "ewc"), seeds=(0, 1))
    runs = study.runs()
    assert [(run.mitigation, run.seed) for run in runs] == [(m, s) for s in (0, 1) for m in ("naive", "lora", "ewc")]
    assert len({run.run_id for run in runs}) == 6


def _run(**changes: object) -> RunConfig:
    values: dict = {"model": "micro", "sequence": {"name": "micro-5"}, "mitigation": "naive", "seed": 0}
    return RunConfig.model_validate(values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"mitigation": "lora"},
        {"model": "other"},
        {"sequence": {"name": "micro-5", "split_seed": 1}},
        {"training": {"learning_rate": 2e-3}},
        {"evaluation": {"limit": 3}},
        {"pretraining": {"seed": 5}},
    ],
)
def test_every_setting_changes_the_hash(changes: dict) -> None:
    assert _run(**changes).hash != _run().hash
    assert _run(**changes).hash == _run(**changes).hash


def test_a_run_from_before_a_setting_keeps_its_name() -> None:
    """The hash of committed results, whose records know neither scenarios nor the Fisher distance."""
    run = RunConfig(model="micro", sequence=SequenceConfig(name="micro-5"), mitigation="naive", seed=0)
    assert run.hash == "863bae75edea"
    measured = run.model_copy(update={"evaluation": EvaluationConfig(fisher_distance=True)})
    assert measured.hash != run.hash


def test_run_ids_are_names_of_files_whatever_the_mitigation_is() -> None:
    ids = [_run(mitigation=text).run_id for text in ("/a/b/l2sp.py:strength=1", "../m/l2sp.py+ewc:strength=1e+3")]
    assert ids[0].startswith("l2sp-s0-") and ids[1].startswith("l2sp+ewc-s0-")
    assert not any("/" in run_id for run_id in ids)


def test_steps_and_epochs_exclude_each_other() -> None:
    assert StudyConfig(name="s").training.steps == 100
    by_epochs = parse_study({"name": "s", "training": {"epochs": 2}}).training
    assert (by_epochs.steps, by_epochs.epochs) == (None, 2)


def test_seeds_may_be_a_number_of_seeds() -> None:
    assert parse_study({"name": "s", "seeds": 3}).seeds == (0, 1, 2)
    assert parse_study({"name": "s", "sequence": "trace"}).sequence == SequenceConfig(name="trace")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'?"),
        (
            {"training": {"learnin_rate": 1}},
            "unknown key 'training.learnin_rate'; did you mean 'learning_rate'?",
        ),
        ({"evaluation": {"suites": ["x"]}}, "did you mean 'suite'?"),
        ({"sequence": {"name": "x", "datadir": "y"}}, "did you mean 'data_dir'?"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate = -1: Input should be greater than 0"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate = 'fast'"),
        ({"training": {"steps": 0}}, "training.steps = 0"),
        ({"training": {"steps": 3, "epochs": 1}}, "steps and epochs are both given"),
        ({"training": {"scheduler": "cosin"}}, "'constant', 'linear' or 'cosine'"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate = nan"),
        ({"seeds": [0, 0]}, "seeds: 0 occurs twice"),
        ({"seeds": [-1]}, "seeds: -1 is not between 0 and 4000000"),
        ({"seeds": [20240101]}, "seeds: 20240101 is not between 0 and 4000000"),
        ({"training": {"warmup": 1}}, "training.warmup = 1"),
        ({"seeds": []}, "seeds = []"),
        ({"mitigations": []}, "mitigations = []"),
        ({"mitigations": ["naive", "naive"]}, "mitigations: 'naive' occurs twice"),
        ({"name": "../up"}, "name = '../up'"),
        ({"sequence": {"name": ""}}, "sequence.name = ''"),
        ({"pretraining": {"documents": "many"}}, "pretraining.documents = 'many'"),
    ],
)
def test_bad_values_are_one_line(values: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_study({"name": "s"} | values, source="s.yaml")
    message = str(error.value)
    assert said in message and message.startswith("s.yaml: ") and "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [a", "line 2: not YAML"),
        ("a: b: c\n", "line 1: not YAML"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("[" * 2000, "not YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text + "\n" if text == "name: [a" else text)
    with pytest.raises(UsageError) as error:
        read_yaml(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_and_binary_study_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(UsageError, match="directory"):
        read_yaml(tmp_path)
