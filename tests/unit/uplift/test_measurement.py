"""Measurement of a campaign: textbook formulas, worked figures, and how often intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from uplift.errors import DesignError
from uplift.measurement import (
    ConfidenceSequence,
    arm_mean,
    benjamini_hochberg,
    cuped,
    customers_needed,
    ratio,
)
from uplift.scores import Estimate


def test_difference_in_means_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    treated = rng.random(4000) < 0.3
    y = rng.standard_normal(4000) + 0.2 * treated
    each = np.arange(4000)
    made = (arm_mean(y, treated, each) - arm_mean(y, ~treated, each)).estimate
    assert made.value == pytest.approx(y[treated].mean() - y[~treated].mean(), abs=1e-14)
    welch = y[treated].var(ddof=1) / treated.sum() + y[~treated].var(ddof=1) / (~treated).sum()
    assert made.se == pytest.approx(np.sqrt(welch), rel=1e-3)


def test_repeated_rows_are_one_customer() -> None:
    rng = np.random.default_rng(1)
    treated, y = rng.random(500) < 0.5, rng.standard_normal(500)
    once = arm_mean(y, treated, np.arange(500)) - arm_mean(y, ~treated, np.arange(500))
    wide, ys, four = np.repeat(treated, 4), np.repeat(y, 4), np.repeat(np.arange(500), 4)
    again = arm_mean(ys, wide, four) - arm_mean(ys, ~wide, four)
    assert again.value == pytest.approx(once.value)
    assert again.estimate.se == pytest.approx(once.estimate.se, rel=1e-12)


def test_cuped_takes_the_squared_correlation_off_the_variance() -> None:
    rng = np.random.default_rng(2)
    before = rng.standard_normal(100_000)
    y = 3 + 0.8 * before + 0.6 * rng.standard_normal(100_000)
    made = cuped(y, before)
    rho = np.corrcoef(y, before)[0, 1]
    assert made.var() == pytest.approx(y.var() * (1 - rho**2), rel=1e-9)
    assert made.mean() == pytest.approx(y.mean(), abs=1e-12)
    assert np.corrcoef(made, before)[0, 1] == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(cuped(y, np.full(100_000, 7.0)), y)


def simulate(rng: np.random.Generator, n: int, cost: float):
    """Profit and cost of n customers, half treated: return 2 per currency; cost is uncertain."""
    treated = rng.random(n) < 0.5
    shared = rng.standard_normal(n)
    profit = 2 * cost * treated + shared + rng.standard_normal(n)
    spent = cost * treated + 0.5 * shared + rng.standard_normal(n)
    each = np.arange(n)
    return tuple(arm_mean(y, treated, each) - arm_mean(y, ~treated, each) for y in (profit, spent))


def test_fieller_by_the_equation_that_it_solves() -> None:
    """At both ends the estimate P - R C is 1.96 standard errors from 0."""
    profit, spent = simulate(np.random.default_rng(3), 2000, 0.4)
    made = ratio(profit, spent)
    assert made.value == profit.value / spent.value
    assert made.bounded
    for end in (made.lo, made.hi):
        gap = (profit - spent.scaled(end)).estimate
        assert abs(gap.value) == pytest.approx(1.959964 * gap.se, rel=1e-6)
    assert made.lo < made.value < made.hi


def fieller_held(runs: int, seed: int) -> tuple[float, float]:
    """Shares of campaigns whose interval holds the truth, and whose interval is bounded; the cost
    is 4 standard errors from 0."""
    rng = np.random.default_rng(seed)
    made = [ratio(*simulate(rng, 300, 0.5)) for _ in range(runs)]
    held = np.mean([not m.bounded or m.lo <= 2 <= m.hi for m in made])
    return float(held), float(np.mean([m.bounded for m in made]))


def test_fieller_holds_the_truth_with_a_weak_denominator() -> None:
    held, bounded = fieller_held(1000, 4)
    assert 0.93 <= held <= 0.97
    assert bounded > 0.9


def test_a_cost_that_may_be_nothing_gives_no_bounds() -> None:
    made = ratio(*simulate(np.random.default_rng(5), 300, 0.0))
    assert (made.lo, made.hi, made.bounded) == (None, None, False)


def ever_missed(runs: int, seed: int) -> dict[str, float]:
    """Share of runs in which 0, the truth, was outside at one of 200 looks or more."""
    rng = np.random.default_rng(seed)
    looks = np.linspace(100, 10_000, 200).astype(int)
    sequence = ConfidenceSequence(5000)
    missed = {"two-sided": 0, "lower": 0, "plain z": 0}
    for _ in range(runs):
        y = rng.standard_normal(10_000)
        total, square = np.cumsum(y)[looks - 1], np.cumsum(y**2)[looks - 1]
        found = dict.fromkeys(missed, False)
        for n, s, q in zip(looks.tolist(), total, square, strict=True):
            estimate = Estimate(s / n, np.sqrt((q / n - (s / n) ** 2) / n))
            low, high = sequence.interval(estimate, n)
            found["two-sided"] |= not low <= 0 <= high
            found["lower"] |= sequence.bounds(estimate, n)[0] > 0
            found["plain z"] |= not estimate.lo <= 0 <= estimate.hi
        for name, miss in found.items():
            missed[name] += miss
    return {name: count / runs for name, count in missed.items()}


def test_a_confidence_sequence_survives_two_hundred_looks() -> None:
    found = ever_missed(400, 6)
    assert found["two-sided"] <= 0.05
    assert found["lower"] <= 0.05
    assert found["plain z"] > 0.3, "a plain interval at every look is wrong in the end"


@pytest.mark.slow
def test_fieller_and_confidence_sequences_over_many_campaigns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    held, bounded = fieller_held(4000, 8)
    found = ever_missed(4000, 9)
    with capsys.disabled():
        print(f"\nFieller held {held:.4f}, bounded {bounded:.4f}; ever missed: {found}")
    assert 0.93 <= held <= 0.97
    assert found["two-sided"] <= 0.05
    assert found["lower"] <= 0.05


def test_width_of_the_sequence_at_its_target() -> None:
    """1.55 times that of the fixed interval, and wider elsewhere relative to it."""
    sequence, one = ConfidenceSequence(2000), Estimate(0.0, 1.0)

    def width(n: int) -> float:
        return sequence.interval(one, n)[1] / one.hi

    assert width(2000) == pytest.approx(1.549, abs=1e-3)
    assert width(2000) < min(width(1000), width(4000))
    assert sequence.bounds(one, 2000)[1] < sequence.interval(one, 2000)[1]


def test_benjamini_hochberg_by_hand_and_by_scipy() -> None:
    p = np.array([0.2, 0.001, 0.04, 0.028, 0.9])
    # .028 <= 2 * .02, .04 <= 3 * .02, .2 > 4 * .02.
    assert benjamini_hochberg(p, 0.1).tolist() == [False, True, True, True, False]
    rng = np.random.default_rng(7)
    for _ in range(20):
        p = rng.random(30) ** 3
        np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), false_discovery_control(p) <= 0.1)
    assert not benjamini_hochberg(np.ones(4)).any()


def test_customers_needed() -> None:
    sd = np.sqrt(0.2 * 0.8)
    assert customers_needed(0.0108, sd, sd, 0.9, 0.1) == pytest.approx(119_629, abs=1)


def test_refusals() -> None:
    y = np.ones(4)
    with pytest.raises(DesignError, match="needs rows of that arm, found none"):
        arm_mean(y, np.zeros(4, dtype=bool), np.arange(4))
    with pytest.raises(DesignError, match="at least 100 clusters, found 99"):
        ConfidenceSequence(1000).interval(Estimate(0.0, 1.0), 99)
    with pytest.raises(DesignError, match="target of at least 100 clusters"):
        ConfidenceSequence(10)
    with pytest.raises(DesignError, match="effect other than 0 and shares above 0"):
        customers_needed(0.0, 1, 1, 0.5, 0.5)
