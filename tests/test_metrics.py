"""The metrics against values worked out by hand as fractions, and their laws."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forgetting import metrics

# R[i, j] after the first i of three tasks; row 0 is the base model.
R = [
    [F(1, 10), F(2, 10), F(3, 10)],
    [F(8, 10), F(1, 10), F(4, 10)],
    [F(9, 10), F(7, 10), F(5, 10)],
    [F(4, 10), F(6, 10), F(9, 10)],
]
FLOATS = [[float(value) for value in row] for row in R]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.average_accuracy, F(1, 3) * (F(4, 10) + F(6, 10) + F(9, 10))),  # last row
        (metrics.learning_accuracy, F(1, 3) * (F(8, 10) + F(7, 10) + F(9, 10))),  # right after each task
        (metrics.backward_transfer, F(1, 2) * ((F(4, 10) - F(8, 10)) + (F(6, 10) - F(7, 10)))),
        (metrics.forward_transfer, F(1, 2) * ((F(1, 10) - F(2, 10)) + (F(5, 10) - F(3, 10)))),
        # task 1 peaked after task 2, at 9/10, not when it was learned
        (metrics.forgetting_measure, F(1, 2) * ((F(9, 10) - F(4, 10)) + (F(7, 10) - F(6, 10)))),
    ],
)
def test_task_metrics_by_hand(metric, expected):
    assert metric(FLOATS) == pytest.approx(float(expected), abs=1e-15)


def test_the_expected_values_are_what_the_formulas_say_when_written_out():
    T = 3
    at = {(i, j): R[i][j - 1] for i in range(T + 1) for j in range(1, T + 1)}
    assert metrics.backward_transfer(FLOATS) == pytest.approx(
        float(sum(at[T, j] - at[j, j] for j in range(1, T)) / (T - 1))
    )
    assert metrics.forward_transfer(FLOATS) == pytest.approx(
        float(sum(at[j - 1, j] - at[0, j] for j in range(2, T + 1)) / (T - 1))
    )
    assert metrics.forgetting_measure(FLOATS) == pytest.approx(
        float(sum(max(at[k, j] for k in range(j, T)) - at[T, j] for j in range(1, T)) / (T - 1))
    )


def test_intransigence_by_hand():
    single = [0.9, 0.8, 0.9]
    expected = F(26, 30) - F(24, 30)
    assert metrics.intransigence(FLOATS, single) == pytest.approx(float(expected), abs=1e-15)


def test_one_task_leaves_what_divides_by_T_minus_1_undefined():
    R1 = [[0.25], [0.75]]
    assert metrics.average_accuracy(R1) == metrics.learning_accuracy(R1) == 0.75
    for metric in (metrics.backward_transfer, metrics.forward_transfer, metrics.forgetting_measure):
        assert np.isnan(metric(R1))


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0, 0.5]],  # no row after training
        [[0.1, 0.2], [0.3, 0.4]],  # rows < T + 1: the run is not finished
        [[0.1], [0.2], [0.3]],  # rows > T + 1
        [0.1, 0.2],
        0.5,
        np.zeros((1, 0)),
        np.zeros((3, 2, 1)),
    ],
)
def test_another_shape_of_R_is_refused_in_one_line(bad):
    for metric in (
        metrics.average_accuracy,
        metrics.learning_accuracy,
        metrics.backward_transfer,
        metrics.forward_transfer,
        metrics.forgetting_measure,
    ):
        with pytest.raises(ValueError, match=r"^R: has shape .*; needs [^\n]*$"):
            metric(bad)


def test_intransigence_refuses_another_number_of_single_task_scores():
    with pytest.raises(ValueError, match=r"single_task: has shape \(2,\); needs \(3,\)"):
        metrics.intransigence(FLOATS, [0.5, 0.5])


def test_retention_by_hand_and_its_guard():
    # columns: half kept; improved; below chance after; base at chance; base just under two standard errors
    G = [[0.75, 0.5, 0.6, 0.25, 0.349], [0.1] * 5, [0.5, 0.75, 0.15, 0.9, 0.9]]
    chance, stderr = [0.25, 0.25, 0.5, 0.25, 0.25], [0.05] * 5
    got = metrics.retention(G, chance, stderr)
    expected = [F(25, 50), F(50, 25), F(15 - 50, 10)]
    # 0.6 is 0.1 above chance: two standard errors are not exceeded where they are 0.05 in exact arithmetic
    assert got[:2] == pytest.approx([float(value) for value in expected[:2]])
    assert np.isnan(got[3]) and np.isnan(got[4])
    finer = metrics.retention(G, chance, [0.04] * 5)
    assert finer[2] == pytest.approx(float(expected[2])) and np.isnan(finer[3])


def test_two_standard_errors_are_not_enough_and_more_are():
    # 0.25 + 2 * 0.125 = 0.5 exactly in binary
    assert np.isnan(metrics.retention([[0.5], [0.5]], [0.25], [0.125]))[0]
    assert metrics.retention([[0.5625], [0.5625]], [0.25], [0.125])[0] == 1.0


def test_retention_is_undefined_where_the_standard_error_is_unknown():
    assert np.isnan(metrics.retention([[0.9], [0.9]], [0.25], [np.nan]))[0]


def test_mean_retention_counts_what_it_leaves_out():
    mean = metrics.mean_retention([0.5, np.nan, 1.0, np.nan, np.nan])
    assert mean == (0.75, 2, 3)
    none = metrics.mean_retention([np.nan])
    assert np.isnan(none.mean) and (none.defined, none.undefined) == (0, 1)


def test_delta_capability_by_hand():
    G = [[0.5, 0.75, 1.0], [0.9, 0.9, 0.9], [0.25, 0.5, 1.25]]
    assert metrics.delta_capability(G) == pytest.approx(float((F(-1, 4) - F(1, 4) + F(1, 4)) / 3))
    assert np.isnan(metrics.delta_capability(np.zeros((2, 0))))


@pytest.mark.parametrize("bad", [[[0.5]], [0.5, 0.5], np.zeros((0, 3))])
def test_another_shape_of_G_is_refused(bad):
    with pytest.raises(ValueError, match=r"^G: has shape .*; needs [^\n]*$"):
        metrics.delta_capability(bad)
    with pytest.raises(ValueError, match=r"^G: has shape .*; needs [^\n]*$"):
        metrics.retention(bad, [0.0], [0.0])


def test_retention_refuses_other_lengths_and_negative_errors():
    with pytest.raises(ValueError, match=r"chance: has shape \(1,\); needs \(2,\)"):
        metrics.retention(np.ones((2, 2)), [0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"base_stderr: has shape \(3,\); needs \(2,\)"):
        metrics.retention(np.ones((2, 2)), [0.0, 0.0], [0.0] * 3)
    with pytest.raises(ValueError, match=r"base_stderr: -0\.1 is negative"):
        metrics.retention(np.ones((2, 2)), [0.0, 0.0], [0.0, -0.1])
    with pytest.raises(ValueError, match="retained: has shape"):
        metrics.mean_retention([[0.5]])


def test_delta_cross_entropy():
    assert metrics.delta_cross_entropy(1.25, 2.0) == 0.75
    with pytest.raises(ValueError, match=r"after: -1\.0 is negative"):
        metrics.delta_cross_entropy(1.0, -1.0)


def test_flips_by_hand():
    base, tuned = [1, 1, 1, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1, 0, 0]
    plain = metrics.flips(base, tuned)
    assert (plain.lost, plain.gained, plain.n) == (2 / 8, 1 / 8, 8)
    assert (plain.lost_adjusted, plain.gained_adjusted) == (plain.lost, plain.gained)
    # c = 1/4: n00/n = 3/8, lucky = (1/4)(3/8)/(9/16) = 1/6; (2/8)/(3/4) − 1/6 = 1/6; (1/8)/(3/4) − 1/6 = 0
    adjusted = metrics.flips(base, tuned, chance=0.25)
    assert (adjusted.lost, adjusted.gained) == (2 / 8, 1 / 8)
    assert adjusted.lost_adjusted == pytest.approx(1 / 6)
    assert adjusted.gained_adjusted == pytest.approx(0, abs=1e-15)


def test_adjusted_flips_recover_what_was_known_and_lost_from_guesses():
    """Every item known or guessed with chance 1/4: the shares lost and gained are those that were planted."""
    generator, n, chance = np.random.default_rng(7), 200_000, 0.25
    state = generator.choice(4, size=n, p=[0.4, 0.15, 0.05, 0.4])  # neither, before only, after only, both
    before = np.isin(state, (1, 3)) | (generator.random(n) < chance)
    after = np.isin(state, (2, 3)) | (generator.random(n) < chance)
    got = metrics.flips(before, after, chance=chance)
    assert got.lost_adjusted == pytest.approx(0.15, abs=0.005)
    assert got.gained_adjusted == pytest.approx(0.05, abs=0.005)
    # Without it: 0.15 · 3/4 lost for good reasons, 0.4 · 1/4 · 3/4 by luck.
    assert got.lost == pytest.approx(0.15 * 0.75 + 0.4 * 0.25 * 0.75, abs=0.005)


def test_two_guessers_lose_nothing():
    # all four outcomes of two independent coins, once each
    got = metrics.flips([0, 0, 1, 1], [0, 1, 0, 1], chance=0.5)
    assert (got.lost, got.gained, got.lost_adjusted, got.gained_adjusted) == (0.25, 0.25, 0, 0)


@pytest.mark.parametrize(
    ("base", "tuned", "chance", "message"),
    [
        ([1, 0], [1], 0, "one outcome per item in both"),
        ([], [], 0, "one outcome per item in both"),
        ([1, 0.5], [1, 0], 0, "base_items: hold an outcome that is neither 0 nor 1"),
        ([1, 0], [1, np.nan], 0, "tuned_items: hold an outcome that is neither 0 nor 1"),
        ([1, 0], [1, 0], 1.0, r"chance: 1\.0 is not in \[0, 1\)"),
    ],
)
def test_flips_refuse_what_is_not_paired_outcomes(base, tuned, chance, message):
    with pytest.raises(ValueError, match=message):
        metrics.flips(base, tuned, chance)


scores = st.floats(0, 1, allow_subnormal=False)
task_matrices = st.integers(2, 6).flatmap(lambda T: arrays(np.float64, (T + 1, T), elements=scores))


@given(task_matrices)
def test_laws_of_the_task_metrics(matrix):
    tasks = matrix.shape[1]
    forgetting, bwt = metrics.forgetting_measure(matrix), metrics.backward_transfer(matrix)
    assert forgetting >= -bwt - 1e-12  # the peak is at least the score when learned
    # ACC − LA is what earlier tasks changed: the last task has had no time to be forgotten.
    change = metrics.average_accuracy(matrix) - metrics.learning_accuracy(matrix)
    assert change == pytest.approx(bwt * (tasks - 1) / tasks, abs=1e-12)
    learned = np.diagonal(matrix, offset=-1)
    assert metrics.intransigence(matrix, learned) == pytest.approx(0, abs=1e-12)


@given(task_matrices)
def test_nothing_changes_nothing_is_transferred(matrix):
    still = np.tile(matrix[0], (len(matrix), 1))
    assert metrics.backward_transfer(still) == metrics.forward_transfer(still) == 0
    assert metrics.forgetting_measure(still) == 0
    assert metrics.average_accuracy(still) == metrics.learning_accuracy(still)


@given(task_matrices)
def test_forgetting_is_minus_bwt_where_each_task_peaks_when_learned(matrix):
    tasks = matrix.shape[1]
    for j in range(1, tasks + 1):  # scores only fall after the task
        matrix[j:, j - 1] = np.sort(matrix[j:, j - 1])[::-1]
    assert metrics.forgetting_measure(matrix) == pytest.approx(-metrics.backward_transfer(matrix), abs=1e-12)


@given(task_matrices, st.floats(0.01, 0.5))
def test_a_better_end_is_never_a_worse_metric(matrix, step):
    better = matrix.copy()
    better[-1] += step
    assert metrics.average_accuracy(better) > metrics.average_accuracy(matrix)
    assert metrics.backward_transfer(better) > metrics.backward_transfer(matrix)
    assert metrics.forgetting_measure(better) < metrics.forgetting_measure(matrix)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.floats(0, 0.9))
def test_laws_of_flips(pairs, chance):
    base, tuned = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    there, back = metrics.flips(base, tuned, chance), metrics.flips(tuned, base, chance)
    assert there.gained - there.lost == pytest.approx(tuned.mean() - base.mean(), abs=1e-12)
    assert (there.lost, there.lost_adjusted) == (back.gained, back.gained_adjusted)
    assert there.lost_adjusted >= 0 and there.gained_adjusted >= 0
    same = metrics.flips(base, base, chance)
    assert (same.lost, same.gained, same.lost_adjusted, same.gained_adjusted) == (0, 0, 0, 0)
