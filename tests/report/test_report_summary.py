"""From records to rows: values worked out by hand, and what is left out."""

from __future__ import annotations

import math
from fractions import Fraction as F

import pandas as pd
import pytest

from forgetting.analysis.stats import seed_interval
from forgetting.config import StudyConfig
from forgetting.errors import UsageError
from forgetting.report.summary import (
    against_baseline,
    aggregate,
    base_stderr,
    curve_point,
    matrices,
    measured,
    summarise,
    views,
)
from forgetting.results import (
    CapabilityInfo,
    Cost,
    ResultStore,
    Row,
    RunRecord,
    TaskCost,
    TaskInfo,
    TextDrift,
)


def _drift(ce, kl=0.0):
    return TextDrift(ce=ce, bpb=ce, kl_forward=kl, kl_reverse=2 * kl, tokens=100)


def _by_hand(tmp_path, *, with_items=True, metric="accuracy", chance=0.25):
    """Two tasks, three capabilities: one with items, one at chance, one where lower is better."""
    config = StudyConfig(name="by-hand", mitigations=("lora",), seeds=(3,))
    store = ResultStore.create(tmp_path / "by-hand", config)
    run = config.runs()[0]
    R = [[0.25, 0.5], [0.75, 0.25], [0.5, 1.0]]
    G = [[0.75, 0.5, 3.0], [0.5, 0.5, 4.0], [0.5, 0.75, 9.0]]
    views = {"adapter_off": {"R": [0.25, 0.25], "G": [0.75, 0.5, 3.0]}}
    rows = [
        Row(R=R[0], G=G[0], drift={"text": _drift(1.0)}, evaluation_seconds=1),
        Row(R=R[1], G=G[1], drift={"text": _drift(2.0, 0.5)}, views=views, evaluation_seconds=2),
        Row(
            R=R[2],
            G=G[2],
            drift={"text": _drift(1.75, 0.25), "task_inputs": _drift(5.0, 4.0)},
            views=views,
            view_drift={"adapter_off": {"text": _drift(1.5, 0.125)}},
            evaluation_seconds=3,
        ),
    ]

    def task_cost(name, examples, **values):
        common = {"truncated": 1, "flops": 1e9, "train_loss": 0.5, "log": []}
        return TaskCost(task=name, examples=examples, **common, **values)

    record = RunRecord(
        run_id=run.run_id,
        study="by-hand",
        config=run,
        config_hash=run.hash,
        status="finished",
        tasks=[
            TaskInfo(name=name, metric=metric, chance=0.25, n_train=9, n_validation=3, n_test=4) for name in ("a", "b")
        ],
        capabilities=[
            CapabilityInfo(name="skill", metric="acc", chance=chance, n=4),
            CapabilityInfo(name="luck", metric="acc", chance=0.5, n=4),
            CapabilityInfo(name="bits", metric="bits", chance=0.0, n=4, higher_is_better=False),
        ],
        rows=rows,
        cost=Cost(
            tasks=[
                task_cost("a", {"task": 30}, steps=10, tokens={"task": 300}, seconds=4.0),
                task_cost(
                    "b",
                    {"task": 30, "pretraining": 20, "earlier": 10, "padding": 10},
                    steps=12,
                    tokens={"task": 300, "pretraining": 50},
                    seconds=5.0,
                ),
            ],
            setup_seconds=0.5,
            parameters=7,
            trainable_parameters=5,
            stored_floats=11,
        ),
    )
    # 40 items each: 30 right of 40; later 20 right, of which 2 were wrong before
    base = [1.0] * 30 + [0.0] * 10
    tuned = [1.0] * 18 + [0.0] * 12 + [1.0] * 2 + [0.0] * 8
    luck = [1.0] * 20 + [0.0] * 20
    bits = [3.0] * 40
    items = {
        "R": [{}, {}, {}],
        "G": [
            {"skill": base, "luck": luck, "bits": bits},
            {"skill": tuned, "luck": luck, "bits": bits},
            {"skill": tuned, "luck": luck, "bits": bits},
        ],
    }
    store.save(record, items if with_items else None)
    return store


def test_a_run_by_hand(tmp_path):
    store = _by_hand(tmp_path)
    run = summarise(store).iloc[0]
    assert (run["mitigation"], run["view"], run["seed"], run["status"]) == ("lora", "", 3, "finished")
    expected = {
        "ACC": F(3, 4),
        "LA": F(7, 8),
        "BWT": F(-1, 4),
        "FWT": F(-1, 4),
        "forgetting": F(1, 4),
        "retention": F(1, 2),  # (0.5 − 0.25) / (0.75 − 0.25); luck is at chance, bits has no chance level
        "retention_defined": 1,
        "retention_undefined": 1,
        "delta_G": F(0),  # (−1/4 + 1/4) / 2
        "delta_CE:text": F(3, 4),
        "KL_forward:text": F(1, 4),
        "KL_reverse:text": F(1, 2),
        "KL_forward:task_inputs": 4,
        "flips_lost": F(12, 40) / 2,
        "flips_gained": F(2, 40) / 2,
        # skill: 12/40 / (3/4) − (1/4)(8/40) / (9/16); luck lost nothing: negative before it is cut at 0
        "flips_lost_adjusted": (F(12, 40) / F(3, 4) - F(1, 4) * F(8, 40) / F(9, 16)) / 2,
        "flips_gained_adjusted": 0,
        "steps": 22,
        "tokens": 650,
        "examples": 100,
        "replay_share": F(30, 100),  # the padding of a control is not replay
        "truncated": 2,
        "flops": 2e9,
        "seconds": F(19, 2),
        "evaluation_seconds": 6,
        "trainable_parameters": 5,
        "stored_floats": 11,
        "tasks_done": 2,
    }
    for name, value in expected.items():
        assert run[name] == pytest.approx(float(value), abs=1e-12), name
    assert "delta_CE:task_inputs" not in run  # the base model was not measured on it


def test_a_view_is_a_row_of_its_own_with_the_base_models_row_0(tmp_path):
    frame = summarise(_by_hand(tmp_path))
    assert list(frame["view"]) == ["", "adapter_off"]
    view = frame.iloc[1]
    # R of the view: base [1/4, 1/2], then [1/4, 1/4] twice
    assert (view["ACC"], view["LA"], view["BWT"], view["FWT"]) == (0.25, 0.25, 0.0, -0.25)
    assert view["retention"] == 1.0
    assert (view["delta_CE:text"], view["KL_forward:text"], view["KL_reverse:text"]) == (0.5, 0.125, 0.25)
    assert math.isnan(view["KL_forward:task_inputs"]) and math.isnan(view["seconds"])  # not measured in it


def test_without_items_the_standard_error_is_binomial_and_flips_are_unknown(tmp_path):
    store = _by_hand(tmp_path, with_items=False)
    record = next(store.records())
    stderr = base_stderr(record, store.load_items(record.run_id))
    assert stderr[:2] == pytest.approx([math.sqrt(0.75 * 0.25 / 4), 0.25])
    assert math.isnan(stderr[2])
    run = summarise(store).iloc[0]
    # with 4 items, 0.75 is 0.5 above chance, more than two standard errors of 0.2165
    assert run["retention"] == 0.5
    assert math.isnan(run["flips_lost"])


def test_items_give_the_standard_error_where_they_are(tmp_path):
    store = _by_hand(tmp_path)
    record = next(store.records())
    stderr = base_stderr(record, store.load_items(record.run_id))
    assert stderr[0] == pytest.approx(math.sqrt(0.75 * 0.25 / 39))  # n − 1 in the variance
    assert stderr[2] == 0


def test_the_guard_depends_on_the_number_of_items(tmp_path):
    """0.75 against chance 0.55: two standard errors are 0.43 with the 4 items counted, 0.14 with 40 stored."""
    assert math.isnan(summarise(_by_hand(tmp_path / "4", with_items=False, chance=0.55)).iloc[0]["retention"])
    assert summarise(_by_hand(tmp_path / "40", chance=0.55)).iloc[0]["retention"] == pytest.approx(-0.25)


def test_units(tmp_path):
    frame = summarise(_by_hand(tmp_path, metric="perplexity"))
    assert set(frame["R_unit"]) == {"nats"} and set(frame["G_unit"]) == {"share"}


def test_a_mixed_sequence_says_so(make_study):
    frame = summarise(make_study(mitigations=["naive"], seeds=[0], perplexity=True))
    assert set(frame["R_unit"]) == {"mixed"}


def test_runs_without_a_result_are_listed_and_left_out_of_means(make_study):
    store = make_study(
        mitigations=["naive", "ewc:strength=1000", "lora:r=8"],
        failed={("naive", 1): "the loss is NaN", **{("lora:r=8", seed): "out of memory" for seed in range(3)}},
        unfinished={("ewc:strength=1000", 0): 3},
        not_begun=[("ewc:strength=1000", 2)],
    )
    frame = summarise(store)
    assert len(frame) == 9
    statuses = frame.set_index(["mitigation", "seed"])["status"]
    assert statuses["naive", 1] == "failed" and statuses["ewc:strength=1000", 0] == "running"
    assert statuses["ewc:strength=1000", 2] == "not begun"
    failed = frame[frame["status"] == "failed"].iloc[0]
    assert failed["reason"] in ("the loss is NaN", "out of memory")
    assert math.isnan(failed["ACC"]) and failed["steps"] == 200  # what it took is known

    points = aggregate(frame).set_index("mitigation")
    assert list(points["n"]) == [2, 1, 0]
    assert list(points["failed"]) == [1, 0, 3] and list(points["unfinished"]) == [0, 2, 0]
    naive = frame[(frame["mitigation"] == "naive") & (frame["status"] == "finished")]
    interval = seed_interval(naive["ACC"])
    got = points.loc["naive", ["ACC", "ACC_low", "ACC_high"]].astype(float)
    assert list(got) == pytest.approx([interval.mean, interval.low, interval.high])
    assert points.loc["ewc:strength=1000", "ACC"] > 0 and math.isnan(points.loc["ewc:strength=1000", "ACC_low"])
    assert math.isnan(points.loc["lora:r=8", "ACC"])


def test_a_study_of_which_nothing_has_begun_has_the_same_columns(make_study):
    begun = summarise(make_study(mitigations=["naive"], seeds=[0]))
    assert "intransigence" not in begun
    store = ResultStore(make_study(mitigations=["naive"], seeds=[0]).folder)
    for path in (store.folder / "runs").iterdir():
        path.unlink()
    frame = summarise(store)
    assert list(frame["status"]) == ["not begun"]
    assert list(frame.columns) == [column for column in begun.columns if ":" not in column]
    assert aggregate(frame)["n"].tolist() == [0]


def test_differences_are_paired_over_common_seeds(make_study):
    store = make_study(mitigations=["naive", "low_lr:factor=0.1"], failed={("naive", 0): "disk full"})
    frame = summarise(store)
    got = against_baseline(frame, ["LA"])["low_lr:factor=0.1"]["LA"]
    by_seed = frame.pivot(index="seed", columns="mitigation", values="LA").loc[[1, 2]]
    assert got == seed_interval(by_seed["low_lr:factor=0.1"] - by_seed["naive"])
    assert got.kind == "seeds" and got.n == 2
    assert against_baseline(frame[frame["mitigation"] != "naive"], ["LA"]) == {}


def test_runs_scored_on_other_tasks_are_not_averaged(make_study):
    store = make_study(mitigations=["naive"], seeds=[0, 1])
    record = list(store.records())[1]
    record.tasks[0].name = "another"
    store.save(record)
    with pytest.raises(UsageError, match=r"has the tasks \['another', [^\n]*delete one of them"):
        summarise(store)


def test_the_summary_survives_csv(make_study, tmp_path):
    frame = summarise(make_study(mitigations=["naive"], seeds=[0, 1], failed={("naive", 1): 'a, "b"\nc'}))
    frame.to_csv(tmp_path / "summary.csv", index=False)
    again = pd.read_csv(tmp_path / "summary.csv", keep_default_na=True)
    for column in measured(frame):
        assert again[column].astype(float).to_numpy() == pytest.approx(
            frame[column].astype(float).to_numpy(), nan_ok=True, rel=1e-15
        )
    assert again["reason"].iloc[1] == 'a, "b"\nc'


def test_intransigence_is_against_the_single_task_run_of_the_same_seed(make_study):
    store = make_study(mitigations=["naive", "lora:r=8", "single_task"], failed={("single_task", 2): "disk full"})
    frame = summarise(store)
    single = {r.config.seed: r for r in store.records() if r.config.mitigation == "single_task"}
    for record in store.records():
        if record.status != "finished":
            continue
        rows = frame[(frame["run_id"] == record.run_id)].set_index("view")["intransigence"]
        assert set(rows.index) == ({"", "adapter_off"} if "lora" in record.config.mitigation else {""})
        T = len(record.tasks)
        for view, value in rows.items():
            if record.config.seed == 2:
                assert math.isnan(value)
                continue
            R, _ = matrices(record, str(view))
            reference = single[record.config.seed].R
            assert value == pytest.approx(sum(reference[j + 1][j] - R[j + 1][j] for j in range(T)) / T, abs=1e-12)
    assert (frame.loc[frame["mitigation"] == "single_task", "intransigence"].dropna() == 0).all()
    points = aggregate(frame).set_index(["mitigation", "view"])
    assert math.isnan(points.loc[("naive", ""), "intransigence"])  # undefined at one seed


def test_views_are_in_the_order_of_their_strengths(make_study):
    store = make_study(mitigations=["task_arithmetic"], seeds=[0])
    record = next(store.records())
    names = ["scale=10", "off", "scale=0.5", "scale=2", "scale=1e-3"]
    for row in record.rows[1:]:
        row.views = {name: {"R": row.R, "G": row.G} for name in names}
    store.save(record)
    ordered = ["off", "scale=1e-3", "scale=0.5", "scale=2", "scale=10"]
    assert views(record) == ordered
    assert list(aggregate(summarise(store))["view"]) == ["", *ordered]
    assert curve_point("alpha=0.25") == ("alpha", 0.25)
    assert curve_point("adapter_off") is None and curve_point("prompt=none") is None
