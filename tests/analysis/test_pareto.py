"""Fronts against their definition, the area against counted squares."""

import numpy as np
import pytest

from forgetting.analysis.pareto import hypervolume, matched_gain, pareto_front, retention_at, retention_between


def test_front_is_what_the_definition_says() -> None:
    points = np.random.default_rng(0).integers(0, 6, size=(60, 2)).astype(float)

    def dominated(j: int) -> bool:
        return any((p >= points[j]).all() and (p > points[j]).any() for p in points)

    front = pareto_front(points)
    assert set(front.tolist()) == {j for j in range(len(points)) if not dominated(j)}
    assert (np.diff(points[front, 0]) >= 0).all()


def test_equal_points_are_all_on_the_front() -> None:
    assert pareto_front([[1, 2], [1, 2], [0, 2]]).tolist() == [0, 1]


def test_hypervolume_is_the_dominated_area() -> None:
    points = np.random.default_rng(1).integers(-2, 9, size=(25, 2)).astype(float)
    grid = np.stack(np.meshgrid(np.arange(10) + 0.5, np.arange(10) + 0.5), -1).reshape(-1, 2)
    counted = sum(any((p > square).all() for p in points) for square in grid)
    assert hypervolume(points) == pytest.approx(counted)
    assert hypervolume([[3.0, 3.0]], reference=(1.0, 2.0)) == 2.0


def test_retention_is_read_at_matched_plasticity() -> None:
    curve = [[0.2, 1.0], [0.6, 0.8], [0.5, 0.3], [0.9, 0.2]]  # the third is dominated
    assert retention_at(curve, 0.4) == pytest.approx(0.9)
    assert retention_at(curve, 0.1) == 1.0
    assert np.isnan(retention_at(curve, 0.95))


def test_mean_retention_at_matched_plasticity() -> None:
    curve = [[0.2, 1.0], [0.6, 0.8], [0.5, 0.3], [0.9, 0.2]]
    assert retention_between(curve, 0.2, 0.9) == pytest.approx((0.4 * 0.9 + 0.3 * 0.5) / 0.7)
    assert retention_between(curve, 0.0, 0.2) == 1.0
    assert np.isnan(retention_between(curve, 0.5, 0.95))
    more = [*curve, [0.4, 0.9], [0.75, 0.5]]  # on the curve: the hypervolume grows, this does not
    assert retention_between(more, 0.1, 0.9) == pytest.approx(retention_between(curve, 0.1, 0.9))
    assert hypervolume(more) > hypervolume(curve)
    sampled = [retention_at(curve, x) for x in np.linspace(0.3, 0.8, 1001)]
    assert retention_between(curve, 0.3, 0.8) == pytest.approx(np.mean(sampled), abs=1e-3)
    with pytest.raises(ValueError, match="low: 0.5 is not below high = 0.5"):
        retention_between(curve, 0.5, 0.5)


def test_gain_is_read_where_both_methods_are() -> None:
    one, other = [[0.2, 1.0], [0.8, 0.7]], [[0.2, 1.0], [0.6, 0.4], [0.9, 0.1]]
    # up to 0.8 from 0.4: 0.9 falls to 0.7; the other's 0.7, 0.4 and 0.2
    assert matched_gain(one, other, 0.4) == pytest.approx(0.8 - (0.2 * 0.55 + 0.2 * 0.3) / 0.4)
    assert matched_gain(other, one, 0.4) == pytest.approx(-matched_gain(one, other, 0.4))
    assert np.isnan(matched_gain(one, other, 0.8))


@pytest.mark.parametrize("points", [[1.0, 2.0], [[1.0, float("nan")]]])
def test_nonsense_is_refused(points: list) -> None:
    with pytest.raises(ValueError, match="points"):
        pareto_front(points)
