"""A capability's comparison: counts by hand, tests from analysis, contexts, and the noise floor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from forgetting.audit.compare import SCORE_TEST, TEXT_TEST, compare, noise_floor, pair
from forgetting.audit.items import check_apart, check_field, clusters, measured, paired
from forgetting.audit.schema import Settings
from forgetting.errors import UsageError
from tests.audit.panels import capability, flipped, panel, record

SETTINGS = Settings()


def test_counts_scores_and_tests_are_those_of_a_two_by_two_table() -> None:
    base, tuned = flipped(100, right=80, lost=12, gained=4)
    found = compare(pair(capability("a", base), capability("a", tuned)), SETTINGS)
    assert (found.n, found.lost, found.gained, found.clusters) == (100, 12, 4, None)
    assert (found.base, found.tuned) == (0.80, 0.72)
    assert found.retention == pytest.approx((0.72 - 0.5) / (0.80 - 0.5))
    assert found.difference.value == pytest.approx(-0.08) and found.difference.method == SCORE_TEST
    exact = stats.binomtest(4, 16).pvalue
    assert found.p_mcnemar == pytest.approx(exact) and found.p_equal == pytest.approx(exact)
    assert found.p_margin is not None and found.p_margin > 0.5  # 8 points were lost: a loss of 3 is not ruled out
    assert found.p_worst is not None and found.p_worst < found.p_margin


def test_items_that_share_a_context_are_not_independent() -> None:
    passages = [f"passage {k // 10}: " + "words " * 20 for k in range(100)]
    base, tuned = np.ones(100), (np.arange(100) >= 20).astype(float)  # two of ten passages are lost whole
    sides = [
        measured(
            "a",
            [("a", record(k, value, passage=passages[k])) for k, value in enumerate(side)],
            "acc",
            chance=0.5,
            higher_is_better=True,
            version="1",
        )
        for side in (base, tuned)
    ]
    found = compare(pair(*sides), SETTINGS)
    assert found.clusters == 10 and found.difference.effective == pytest.approx(10)
    assert found.test == SCORE_TEST and found.p_equal is not None and found.p_equal > 0.05
    assert found.p_mcnemar is not None and found.p_mcnemar < 1e-4  # what independent items would say
    assert compare(pair(*sides, cluster="question"), SETTINGS).clusters is None  # no two have that field alike
    shared = [record(k, 1.0, instruction="Answer with one word, and with nothing else but it. " * 3) for k in range(5)]
    assert (
        clusters(measured("a", [("a", r) for r in shared], "acc", chance=0, higher_is_better=True, version="").items)
        is None
    )


def test_contexts_are_of_a_task_and_an_instruction_of_each_task_is_none() -> None:
    long = "Answer with one word, and with nothing else but it. " * 3
    tasks = [(f"t{k}", record(j, 1.0, instruction=f"{k} {long}")) for k in range(3) for j in range(4)]
    about = {"metric": "acc", "chance": 0.5, "higher_is_better": True, "version": "1"}
    assert clusters(measured("group", tasks, **about).items) is None  # type: ignore[arg-type]
    named = clusters(measured("group", tasks, **about).items, "instruction")  # type: ignore[arg-type]
    assert named is not None and len(set(named)) == 3  # who names the field says what it is
    passages = [("u", record(j, 1.0, passage=f"{j // 2} {long}")) for j in range(4)]
    labels = clusters(measured("group", [*tasks, *passages], **about).items)  # type: ignore[arg-type]
    assert labels is not None and len(set(labels)) == 12 + 2 and max(map(len, labels)) == 16


def test_a_misspelt_context_and_a_task_in_two_capabilities_are_refused() -> None:
    found = {"a": capability("a", np.ones(4), passage="p")}
    check_field(found, None)
    check_field(found, "passage")
    with pytest.raises(UsageError, match="cluster 'pasage': no document .*; did you mean 'passage'"):
        check_field(found, "pasage")
    check_apart({"mmlu": ["mmlu_anatomy", "mmlu_virology"], "arc": ["arc", "arc"]})
    with pytest.raises(UsageError, match="'mmlu' and 'mmlu_anatomy': both hold task 'mmlu_anatomy'"):
        check_apart({"mmlu": ["mmlu_anatomy", "mmlu_virology"], "mmlu_anatomy": ["mmlu_anatomy"]})


def test_a_perplexity_is_compared_with_the_share_that_its_bits_rose() -> None:
    generator = np.random.default_rng(0)
    base = 2 + generator.random(50)
    sides = [
        capability("p", x, higher=False, chance=0, metric="word_perplexity") for x in (base, base + 0.3 + 0.1 * base)
    ]
    found = compare(pair(*sides), SETTINGS)
    assert found.lost is None and found.test == TEXT_TEST and pair(*sides).judged and not pair(*sides).bounded
    assert found.difference.value > 0.3 and found.p_equal is not None and found.p_equal < 1e-6
    rise = (0.3 + 0.1 * base).mean() / base.mean()
    assert found.rise is not None and found.rise.value == pytest.approx(rise) and found.p_margin is not None
    assert found.p_margin > 0.999 and found.p_gain is not None and found.p_gain < 1e-6 and found.p_worst is None
    few = [capability("p", x[:29], higher=False, chance=0, metric="word_perplexity") for x in (base, 2 * base)]
    assert compare(pair(*few), SETTINGS).p_equal == 1.0  # too few texts for any test


def test_a_share_of_which_less_is_better_is_compared_and_not_judged() -> None:
    base, tuned = flipped(100, right=80, lost=12, gained=4)
    sides = [capability("bias", x, higher=False, chance=0, metric="pct_stereotype") for x in (base, tuned)]
    found = compare(pair(*sides), SETTINGS)
    assert (found.lost, found.gained, found.p_margin) == (12, 4, None) and not pair(*sides).judged
    assert found.difference.value == pytest.approx(-0.08) and found.p_equal == found.p_mcnemar


def test_a_capability_that_neither_model_has_is_not_judged() -> None:
    generator = np.random.default_rng(1)
    guesses = [(generator.random(100) < 0.5).astype(float) for _ in range(2)]
    assert not pair(*(capability("a", x) for x in guesses)).judged
    known = np.ones(100)
    assert pair(capability("a", known), capability("a", guesses[0])).judged  # lost to chance
    assert pair(capability("a", guesses[0]), capability("a", known)).judged


def test_the_noise_floor_is_what_flips_by_itself() -> None:
    base, tuned = flipped(100, right=80, lost=12, gained=4)
    again = base.copy()
    again[[0, 99]] = 1 - again[[0, 99]]
    floor = noise_floor(capability("a", base), capability("a", again), capability("a", tuned))
    assert floor is not None and (floor.lost, floor.gained, floor.n) == (1, 1, 100)
    # Of the 16 + 2 flips, items 0 and 99 flip in both runs: 14 in the fine-tune alone, none in the A/A run alone.
    assert floor.p_beyond == pytest.approx(stats.binomtest(14, 14).pvalue)
    assert floor.largest == pytest.approx(1.5)
    quiet = noise_floor(capability("a", base), capability("a", again), capability("a", again))
    assert quiet is not None and quiet.p_beyond == 1


def test_what_is_not_the_same_is_not_paired() -> None:
    base = panel(a=np.ones(4), b=np.ones(4))
    with pytest.raises(UsageError, match="capability 'b': TUNED has none"):
        paired(base, panel(a=np.ones(4)))
    with pytest.raises(UsageError, match=r"task 'b': item 3 is not in TUNED \(4 and 3 items\)"):
        paired(base, panel(a=np.ones(4), b=np.ones(3)))
    with pytest.raises(UsageError, match="task 'b': item 0 is another document"):
        paired(base, {**base, "b": capability("b", np.ones(4), prompt="other")})
    with pytest.raises(UsageError, match="BASE has 'acc' and TUNED 'f1'"):
        paired(base, {**base, "b": capability("b", np.ones(4), metric="f1")})
    with pytest.raises(UsageError, match="item 1 is there twice"):
        measured("a", [("a", record(1, 1)), ("a", record(1, 0))], "acc", chance=0, higher_is_better=True, version="")
