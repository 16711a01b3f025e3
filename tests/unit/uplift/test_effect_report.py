"""The report of a learner's effects, against truth and against the parts that it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.effect_report import TOP_PERCENTS, recommended
from uplift.evaluation import Predictions, Scored, against
from uplift.scores import ScoreMatrix, clustered_mean

N = 4000


def world(noise: float = 0.0) -> tuple[Predictions, ScoreMatrix]:
    """Two arms; the first works on half of the customers, the second everywhere a little."""
    rng = np.random.default_rng(1)
    tau = np.column_stack([rng.uniform(-1, 2, N), np.full(N, 0.2)])
    gamma = np.hstack([np.zeros((N, 1)), tau + noise * rng.standard_normal((N, 2))])
    p = Predictions(tau, np.ones((N, 2)), np.zeros(N), np.ones((N, 2), dtype=bool))
    return p, ScoreMatrix(gamma, np.arange(N))


def test_a_perfect_learner_is_calibrated_and_its_numbers_are_the_truth() -> None:
    p, scores = world(noise=0.5)
    made = recommended(p, scores)
    best = p.reward.max(axis=1)
    assert np.array_equal(made.predicted, best)
    found = made.estimates
    assert found["effect_calibration_slope"].lo < 1 < found["effect_calibration_slope"].hi
    # Ten bins of 400 rows with noise of variance 1/4: squared means of N(0, .25 / 400).
    assert abs(found["effect_calibration_error"].value) < 4 * 0.25 / 400 * np.sqrt(2 / 10)
    assert found["autoc"].lo > 0
    assert found["qini"].lo > 0
    assert abs(found["mean_effect"].value - best.mean()) < 4 * found["mean_effect"].se
    top = np.sort(best)[::-1]
    for k in TOP_PERCENTS:
        e = found[f"uplift_at_{k}"]
        assert abs(e.value - top[: N * k // 100].mean()) < 4 * e.se


def test_without_noise_the_deciles_are_the_predictions() -> None:
    p, scores = world()
    for row in recommended(p, scores).deciles:
        assert row["value"] == pytest.approx(row["predicted"], abs=1e-9)
    curves = recommended(p, scores).curves
    assert curves["toc"][-1]["value"] == pytest.approx(0.0, abs=1e-12)
    assert curves["qini"][-1]["value"] == pytest.approx(p.reward.max(axis=1).mean())


def test_only_arms_that_a_row_may_get_are_recommended() -> None:
    p, scores = world()
    allowed = np.ones((N, 2), dtype=bool)
    allowed[: N // 2, 0] = False
    allowed[:10] = False
    made = recommended(Predictions(p.reward, p.cost, p.response, allowed), scores)
    assert len(made.predicted) == N - 10
    assert (made.predicted[: N // 2 - 10] == 0.2).all()
    assert made.predicted.max() > 1.9


def test_what_one_policy_spends_more_is_charged() -> None:
    """Both reach everyone with the same gain; one costs 1 more per customer, at a price of 2."""
    rng = np.random.default_rng(2)
    gain = ScoreMatrix(np.column_stack([np.zeros(N), np.ones(N), np.ones(N)]), np.arange(N))
    cost = 1 + rng.standard_normal(N)
    spend = ScoreMatrix(np.column_stack([np.zeros(N), cost + 1, np.ones(N)]), np.arange(N))
    first, second = np.tile([1.0, 0.0], (N, 1)), np.tile([0.0, 1.0], (N, 1))
    made = against(Scored(gain, spend), first, {"other": second}, 2.0)["other"]
    expected = clustered_mean(-2 * cost, np.arange(N))
    assert made.value == pytest.approx(expected.value)
    assert made.se == pytest.approx(expected.se)
    free = against(Scored(gain, spend), first, {"other": second}, 0.0)["other"]
    assert (free.value, free.se) == (0.0, 0.0)
