"""The proportional learner: its ratio, its level, and where a ratio means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Settings
from uplift.data import FloatArray
from uplift.learners import make_learner
from uplift.nuisances import Problem

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)
RATIOS = np.array([1.0, 1.5, 0.7])


def shop(
    n: int, *, seed: int = 0, binary: bool = False, ratios: FloatArray = RATIOS, shift: float = 0.0
) -> tuple[Problem, FloatArray]:
    """A problem whose arms multiply exp(.6 x0) by `ratios`, shifted down; and its baseline.

    Who gets what follows x0, with known probabilities.
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)).astype(np.float32)
    x = X[:, 0].astype(float)
    odds = np.exp(np.outer(0.5 * x, [0.0, 1.0, -1.0]))
    assignment = odds / odds.sum(axis=1, keepdims=True)
    arm = draw_arms(assignment, rng)
    baseline = np.minimum(0.15 * np.exp(0.6 * x), 0.6) if binary else np.exp(0.6 * x) - shift
    mean = baseline * ratios[arm]
    y = (rng.random(n) < mean).astype(float) if binary else mean + 0.5 * rng.standard_normal(n)
    return problem_of(training_set(X, arm, y, assignment), SETTINGS, folds=3), baseline


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "money"])
def test_the_ratio_and_the_baseline_are_found(binary: bool) -> None:
    problem, baseline = shop(6000, binary=binary)
    oof = make_learner("proportional").fit(problem).oof
    truth = np.outer(baseline, RATIOS[1:] - 1)
    # The level, within four of its standard errors at these rows; and the shape.
    assert oof.mean(axis=0) == pytest.approx(truth.mean(axis=0), abs=0.06 if binary else 0.08)
    for k in range(2):
        assert np.corrcoef(oof[:, k], truth[:, k])[0, 1] > (0.8 if binary else 0.95)
    rmse = np.sqrt(np.mean((oof - truth) ** 2))
    constant = np.sqrt(truth.var(axis=0).mean())
    assert rmse < 0.6 * constant


def test_all_arms_effects_are_multiples_of_one_baseline() -> None:
    problem, _ = shop(3000)
    tau = make_learner("proportional").fit(problem).model.predict(problem.data.X, 1)
    multiple = tau[:, 1] / tau[:, 0]
    assert multiple == pytest.approx(np.full(len(tau), multiple[0]))
    # (.7 - 1) / (1.5 - 1)
    assert multiple[0] == pytest.approx(-0.6, abs=0.15)


def test_the_average_effect_is_that_of_the_scores_but_for_the_shrinkage() -> None:
    """Weighted like the scores: the ratio is one of sums, so no level is lost on the way."""
    problem, _ = shop(3000)
    made = make_learner("proportional").fit(problem)
    for k in (1, 2):
        rows, contrast, weight = problem.contrast(k)
        found = np.average(made.oof[rows, k - 1], weights=weight)
        scored = np.average(contrast, weights=weight)
        assert 0.9 * scored < found < 1.02 * scored or 1.02 * scored < found < 0.9 * scored


def test_an_arm_without_effect_is_shrunk_to_nothing_more_often_than_not() -> None:
    """|z| < 1 in 68% of the draws, and a standard error of the ratio bounds the rest."""
    found = [
        make_learner("proportional")
        .fit(shop(600, seed=seed, ratios=np.ones(3))[0])
        .model.predict(np.zeros((1, 3), dtype=np.float32), 1)[0]
        for seed in range(12)
    ]
    effects = np.abs(np.array(found)).ravel()
    assert (effects == 0).mean() > 0.4  # 24 draws: 4 standard errors below .68 is .3
    assert effects.max() < 0.25


def test_a_baseline_about_zero_is_no_denominator() -> None:
    """Means of 0 on average: every customer gets the average effect instead of a huge ratio."""
    rng = np.random.default_rng(4)
    n = 4000
    X = rng.standard_normal((n, 3)).astype(np.float32)
    arm = rng.integers(0, 2, n)
    y = np.sin(2 * X[:, 0]) + 0.5 * arm + 0.5 * rng.standard_normal(n)
    problem = problem_of(training_set(X, arm, y, np.full((n, 2), 0.5)), SETTINGS, folds=3)
    made = make_learner("proportional").fit(problem)
    assert made.model.terms == ()
    assert made.model.constant == pytest.approx([0.5], abs=0.08)


def test_held_out_scores_may_speak_against_the_ratio() -> None:
    """One effect for all of a baseline that varies much: the average effect is chosen."""
    rng = np.random.default_rng(5)
    n = 4000
    X = rng.standard_normal((n, 3)).astype(np.float32)
    arm = rng.integers(0, 2, n)
    y = 3.0 * (X[:, 0] > 0) + 1.0 * arm + 0.5 * rng.standard_normal(n)
    problem = problem_of(training_set(X, arm, y, np.full((n, 2), 0.5)), SETTINGS, folds=3)
    made = make_learner("proportional").fit(problem)
    assert made.model.terms == ()
    assert made.model.constant == pytest.approx([1.0], abs=0.08)
