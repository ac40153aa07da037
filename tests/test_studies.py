"""Named studies: every script of experiments/ runs at smoke scale, and its verdicts follow from its runs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from forgetting.cli import app
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.errors import UsageError
from forgetting.report.claims import write_claims
from forgetting.studies import Results, Scale, Study, conclude, load, run_grids, run_named, scripts, seeds_of, sized
from forgetting.verdicts import Claim, Verdict


@pytest.mark.parametrize("name", sorted(scripts()))
def test_a_study_runs_at_smoke_scale(name: str, tmp_path: Path) -> None:
    study = load(name)
    verdicts = run_named(study, tmp_path, "smoke", workers=1)
    assert [verdict.claim for verdict in verdicts] and all(verdict.outcome != "not run" for verdict in verdicts)
    folder = tmp_path / name / "smoke"
    kept = json.loads((folder / "verdicts.json").read_text())
    assert kept["missing"] == [] and len(kept["verdicts"]) == len(study.claims)
    pictures = sorted((folder / "figures").glob("*.p*"))
    assert pictures and all(path.stat().st_size > 1000 for path in pictures)
    before = {path: path.read_bytes() for path in [*pictures, folder / "verdicts.json", folder / "summary.csv"]}
    assert conclude(study, tmp_path, "smoke") == verdicts
    assert {path: path.read_bytes() for path in before} == before, "the same runs give the same bytes"


@pytest.mark.parametrize("name", sorted(scripts()))
def test_a_study_has_a_sample_for_its_intervals_where_its_verdicts_count(name: str) -> None:
    study = load(name)
    for scale in ("laptop", "gpu"):
        grids = study.grids(scale)
        if study.unit == "settings":
            assert len(grids) >= 40 and all(len(config.runs()) == 1 for config in grids.values())
        else:
            seeds: dict[str, set[int]] = {}
            for grid, config in grids.items():
                seeds.setdefault(grid.split("-draw")[0], set()).update(config.seeds)
            assert grids and all(len(s) >= 3 for grid, s in seeds.items() if grid != "tuning"), "it only chooses"
            for grid, config in grids.items():
                if "-draw" in grid:
                    assert config.seeds == (config.sequence.split_seed,), "a draw of examples has its own seed"


def test_smoke_makes_a_grid_small_and_leaves_what_is_not_there() -> None:
    config = StudyConfig(
        name="s",
        sequence=SequenceConfig(name="micro-5", tasks=("sorting", "routing"), test_size=100),
        training=TrainingConfig(steps=80, batch_size=16),
        evaluation=EvaluationConfig(limit=100, drift_tokens=5000),
    )
    assert all(sized(config, scale, tasks=1, training={"steps": 2}) is config for scale in ("laptop", "gpu"))
    small = sized(config, "smoke", tasks=1, pretraining={"documents": 8})
    expected = config.model_dump()
    expected["sequence"] |= {"tasks": ("sorting",), "train_size": 32, "test_size": 8}
    expected["training"] |= {"steps": 3}
    expected["evaluation"] |= {"limit": 4, "drift_tokens": 200}
    expected["pretraining"] |= {"documents": 8}
    assert small.model_dump() == expected
    assert sized(config, "smoke", training={"steps": 2}).training.steps == 2
    epochs = config.model_copy(
        update={"training": TrainingConfig(epochs=1), "evaluation": EvaluationConfig(drift=False)}
    )
    kept = sized(epochs, "smoke")
    assert (kept.training, kept.evaluation.drift_tokens) == (epochs.training, epochs.evaluation.drift_tokens)
    for wrong in ({"stepps": 2}, {"steps": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            sized(config, "smoke", training=wrong)
    assert [seeds_of(scale, laptop=4) for scale in ("smoke", "laptop")] == [(0,), (0, 1, 2, 3)]
    assert len(seeds_of("gpu")) == 10


def script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    path = next(iter(scripts().values())).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first() -> Study:
    return load("learning_rate")


def test_what_was_not_run_is_said_and_decides_nothing(tmp_path: Path) -> None:
    study = first()
    verdicts = run_named(study, tmp_path, "smoke", until=float("-inf"))
    assert {verdict.outcome for verdict in verdicts} == {"not run"}
    content = json.loads((tmp_path / study.name / "smoke" / "verdicts.json").read_text())
    planned = [run for config in study.grids("smoke").values() for run in config.runs()]
    assert len(content["missing"]) == len(planned)
    assert content["missing"][0] == f"rates: {planned[0].mitigation}, seed 0"


def test_half_a_grid_is_no_verdict(tmp_path: Path) -> None:
    study = first()
    config = study.grids("smoke")["rates"]
    folder = tmp_path / study.name / "smoke" / "rates"
    run_grids({folder: config}, workers=1)
    victim = sorted((folder / "runs").glob("*-s0-*.json"))[0]
    victim.unlink()
    verdicts = conclude(study, tmp_path, "smoke")
    assert {verdict.outcome for verdict in verdicts} == {"not run"} and "1 runs are missing" in verdicts[0].ours


def two_stages(seen: list[list[str]]) -> Study:
    """The second grid repeats, with another seed, what the first one tried."""
    small = first().grids("smoke")["rates"]

    def then(scale: Scale, results: Results) -> dict[str, StudyConfig]:
        tried = list(results.finished["mitigation"])
        seen.append(tried)
        return {
            "reported": small.model_copy(update={"name": f"{scale}-two", "mitigations": tuple(tried), "seeds": (1,)})
        }

    return Study(
        "two_stages",
        (Claim("runs", "The second grid is run", "none"),),
        lambda scale: {"tuning": small.model_copy(update={"mitigations": small.mitigations[:1]})},
        lambda results: [Verdict("runs", "holds", ", ".join(results.grids))],
        lambda results, folder: None,
        then,
    )


def test_later_grids_wait_for_the_runs_that_they_depend_on(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    study = two_stages(seen)
    assert run_named(study, tmp_path, "smoke", until=float("-inf"))[0].outcome == "not run"
    assert not seen and list(study.results(tmp_path, "smoke").grids) == ["tuning"]

    verdict = run_named(study, tmp_path, "smoke", workers=1)[0]
    assert (verdict.outcome, verdict.ours) == ("holds", "tuning, reported")
    assert set(map(tuple, seen)) == {("low_lr:factor=0.01+few_steps:fraction=1",)}
    finished = study.results(tmp_path, "smoke").finished
    assert list(zip(finished["grid"], finished["seed"], strict=True)) == [("tuning", 0), ("reported", 1)]

    next((tmp_path / study.name / "smoke" / "tuning" / "runs").glob("*-s0-*.json")).unlink()
    assert conclude(study, tmp_path, "smoke")[0].outcome == "not run", "what was reported has no ground any more"


def test_measurements_wait_for_the_runs_are_kept_and_are_missed(tmp_path: Path) -> None:
    small = first().grids("smoke")["rates"]
    made: list[str] = []

    def measure(results: Results) -> dict[str, Callable[[], dict[str, Any]]]:
        def of(name: str) -> dict[str, Any]:
            made.append(name)
            return {"runs": len(results.records("rates"))}

        return {name: partial(of, name) for name in ("one", "two")}

    study = Study(
        "measuring",
        (Claim("kept", "What was measured is read", "none"),),
        lambda scale: {"rates": small.model_copy(update={"mitigations": small.mitigations[:1]})},
        lambda results: [Verdict("kept", "holds", str(results.measured("one")["runs"]))],
        lambda results, folder: None,
        measure=measure,
    )
    assert run_named(study, tmp_path, "smoke", until=float("-inf"))[0].outcome == "not run" and not made
    assert run_named(study, tmp_path, "smoke", workers=1) == [Verdict("kept", "holds", "1")]
    results = study.results(tmp_path, "smoke")
    assert made == ["one", "two"] and not study.unmeasured(results)
    results.measured_path("two").unlink()
    verdict = conclude(study, tmp_path, "smoke")[0]
    assert (verdict.outcome, verdict.ours) == ("not run", "1 measurements are missing")
    content = json.loads((tmp_path / study.name / "smoke" / "verdicts.json").read_text())
    assert content["missing"] == ["measured: two"]
    run_named(study, tmp_path, "smoke", workers=1)
    assert made == ["one", "two", "two"], "only what is missing is made again"
    other = replace(study, measured_with={"documents": 64})
    assert conclude(other, tmp_path, "smoke")[0].ours == "2 measurements are missing"
    run_named(other, tmp_path, "smoke", workers=1)
    assert made[3:] == ["one", "two"] and not other.unmeasured(results), "what was measured with other settings, too"
    study = other
    results.measured_path("one").write_text("no JSON")
    with pytest.raises(UsageError, match=r"one\.json: cannot be read"):
        conclude(study, tmp_path, "smoke")


def test_an_audit_of_another_fine_tune_than_the_runs_is_refused() -> None:
    study = script("audit_advice")
    record: Any = SimpleNamespace(run_id="r", capabilities=[SimpleNamespace(name="a", chance=0.5)])
    items = [{"a": [1.0] * 9 + [0.0]}, {"a": [1.0] * 7 + [0.0] * 3}]  # .9 and .7 above a chance of .5: half is kept

    def advice(kept: float) -> Any:
        points = [None, SimpleNamespace(retention=SimpleNamespace(mean=kept))]
        return SimpleNamespace(capabilities=("a",), points=points)

    study.check_retrained(record, items, advice(0.5))
    for other in (0.4, float("nan")):
        with pytest.raises(UsageError, match=r"run r: retains 0\.500, and trained again"):
            study.check_retrained(record, items, advice(other))


def test_advice_is_compared_with_retraining_by_remedy() -> None:
    study = script("audit_advice")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        tuned = rng.random(2)
        for remedy in study.ASKED:
            kind = "replay" if remedy == study.REPLAY else study.EDITS[remedy].kind
            names = [f"{whose}_{m}" for whose in ("predicted", "retrained") for m in ("retention", "own")]
            values = dict(zip(names, rng.random(4), strict=True))
            values |= {"tuned_retention": tuned[0], "tuned_own": tuned[1]}
            rows.append({"fine_tune": number, "task": f"task {number % 5}", "remedy": remedy, "kind": kind, **values})
    found = study.agreements(pd.DataFrame(rows))
    assert list(found) == list(study.ASKED) == [claim.key for claim in study.CLAIMS[:-1]]
    assert [one.kind for one in found.values()].count("revert") == 2 and found[study.REPLAY].own is None
    assert all(one.retention.points == 20 for one in found.values())
    assert study.STUDY.measured_digest != replace(study.STUDY, measured_with={}).measured_digest


def test_adaptation_paths_chooses_as_the_leaderboard_does() -> None:
    leaderboard = script("leaderboard")
    paths = script("adaptation_paths")
    assert {method: leaderboard.METHODS[method] for method in paths.METHODS} == paths.METHODS
    assert leaderboard.MARGIN == paths.MARGIN
    rng = np.random.default_rng(0)
    for _ in range(20):
        settings = [setting for method in paths.METHODS.values() for setting in method]
        frame = pd.DataFrame({"mitigation": settings, **{c: rng.random(len(settings)) for c in ("LA", "retention")}})
        frame = frame.assign(view="", status="finished")
        target = frame.loc[frame["mitigation"].isin(paths.METHODS["naive"]), "LA"].max() - paths.MARGIN
        chosen = leaderboard.choose(frame, paths.METHODS, target)
        assert paths.choose(frame) == chosen
    results = SimpleNamespace(finished=frame.assign(grid="tuning"))
    for scale in ("laptop", "gpu"):
        (config,) = paths.then(scale, results).values()
        assert config.mitigations == tuple(chosen.values()) and len(config.seeds) >= 3
        (tuning,) = paths.grids(scale).values()
        assert not set(tuning.seeds) & set(config.seeds)
        assert tuning.evaluation.offset >= config.evaluation.limit, "other items of the probes"
        assert not set(tuning.sequence.tasks) & set(config.sequence.tasks)


def test_a_failed_run_is_a_result_and_leaves_its_claims_open(tmp_path: Path) -> None:
    study = first()
    run_named(study, tmp_path, "smoke", workers=1)
    path = sorted((tmp_path / study.name / "smoke" / "rates" / "runs").glob("*-s0-*.json"))[0]
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "failed", "reason": "loss is not finite"}))
    verdicts = conclude(study, tmp_path, "smoke")
    assert {verdict.outcome for verdict in verdicts} == {"undecided"} and "loss is not finite" in verdicts[0].ours
    content = json.loads((tmp_path / study.name / "smoke" / "verdicts.json").read_text())
    assert content["missing"] == [] and len(content["failed"]) == 1


def test_stored_runs_of_another_grid_are_refused(tmp_path: Path) -> None:
    study = first()
    config = study.grids("smoke")["rates"]
    other = config.model_copy(update={"mitigations": config.mitigations[:1]})
    run_grids({tmp_path / study.name / "smoke" / "rates": other}, workers=1)
    with pytest.raises(UsageError, match="holds another study"):
        conclude(study, tmp_path, "smoke")


def test_the_page_over_all_studies(tmp_path: Path) -> None:
    study = first()
    run_named(study, tmp_path, "laptop", until=float("-inf"))
    run_named(study, tmp_path, "smoke", until=float("-inf"))
    page = write_claims(tmp_path).read_text()
    assert page.count("**not run**") == len(study.claims), "smoke is left out"
    assert all(claim.sentence in page for claim in study.claims)
    assert "forgetting study run learning_rate --scale laptop" in page
    assert f"{len(study.results(tmp_path, 'laptop').missing)} of them not run" in page


@pytest.mark.parametrize(
    ("arguments", "told_by"),
    [
        (["run", "learning_rat"], "did you mean 'learning_rate'"),
        (["run"], "name studies, or give --all"),
        (["run", "--all", "learning_rate"], "name studies, or give --all"),
        (["run", "learning_rate", "--scale", "huge"], "none of smoke, laptop, gpu"),
        (["summary", "--output", "nowhere"], "holds no verdicts.json"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told_by: str) -> None:
    result = CliRunner().invoke(app, ["study", *arguments])
    assert result.exit_code != 0 and told_by in str(result.exception)


def test_the_list_names_every_script() -> None:
    result = CliRunner().invoke(app, ["study", "list"])
    assert result.exit_code == 0 and all(name in result.output for name in scripts())


@pytest.mark.parametrize("content", ["", "[]", "{}", "NaN", '{"study": 1}'])
def test_a_spoiled_verdict_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "learning_rate" / "laptop" / "verdicts.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UsageError, match=r"verdicts\.json: (cannot be read|is not what a study writes)"):
        write_claims(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_the_onset_of_a_dense_training_decides_when_it_is_lost() -> None:
    freezing = script("freezing")
    grids, steps = freezing.grids("laptop"), list(range(0, 161, 4))

    def verdict(halfway: list[int | None]) -> Verdict:
        """Of a loss that has risen by .6 of its rise at a step, seed by seed; by none where it ends as it began."""
        traces = {}
        for seed, half in enumerate(halfway):
            ce = [2.0 + (0.0 if half is None or step < half else 0.6 if step < 160 else 1.0) for step in steps]
            traces[f"trace-{seed}"] = {"step": steps, "ce": ce, freezing.PROBE: [0.9] * 2 + [0.5] * 39}
        results = SimpleNamespace(grids=grids, measured=traces.__getitem__)
        assert set(freezing.traced(results)) == set(traces)
        found: Verdict = freezing.decide_onset(results)
        return found

    early = verdict([8, 12, 8])
    assert early.outcome == "holds" and early.ours.startswith("half by step 9.33 of 160 (95% over seeds: 3.6 to 15.1")
    assert "known facts' accuracy by step 8" in early.ours
    assert verdict([80, 84, 88]).outcome == "fails" and verdict([4, 80, 8]).outcome == "undecided"
    none = verdict([8, None, 8])
    assert none.outcome == "undecided" and "rose in 2 of 3 seeds" in none.ours
