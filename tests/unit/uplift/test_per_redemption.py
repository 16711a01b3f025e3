"""Effects per redemption: nearer to the truth where only redeemers are changed, X where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import problem_of, training_set
from uplift.boosting import Settings
from uplift.data import FloatArray
from uplift.learners import make_learner
from uplift.learners.x import imputed
from uplift.nuisances import Problem

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=40, threads=1)
CONTACT, COUPON = 0.05, 3.0


def shop(n: int, seed: int) -> tuple[Problem, FloatArray]:
    """Orders of customers of whom some use their coupon, and half of those would not have bought;
    and the true effects (n, 1)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6)).astype(np.float32)
    x = X.astype(float)
    chance = 0.6 / (1 + np.exp(2.5 - 2.0 * x[:, 0] - 1.5 * (x[:, 1] > 0)))
    arm = rng.integers(0, 2, n)
    used = (arm == 1) & (rng.random(n) < chance)
    anyway = rng.random(n) < 0.15 / (1 + np.exp(-x[:, 2]))
    y = (anyway | (used & (rng.random(n) < 0.5))).astype(float)
    base = 0.15 / (1 + np.exp(-x[:, 2]))
    truth = (1 - base) * chance * 0.5
    data = training_set(X, arm, y, np.full((n, 2), 0.5))
    data = replace(data, cost=np.where(arm == 1, CONTACT + COUPON * used, 0.0))
    return problem_of(data, SETTINGS, folds=3), truth[:, None]


def test_it_is_nearer_than_x_where_only_redeemers_are_changed() -> None:
    errors = []
    for seed in range(4):
        problem, truth = shop(5_000, seed)
        errors.append(
            [
                np.sqrt(((make_learner(name).fit(problem).oof - truth) ** 2).mean())
                for name in ("per_redemption", "x")
            ]
        )
    ours, x = np.mean(errors, axis=0)
    assert ours < 0.8 * x


def test_who_is_not_sent_a_coupon_to_redeem_has_x_effects() -> None:
    problem, _ = shop(2_000, 5)
    same = replace(problem, data=replace(problem.data, cost=CONTACT * problem.data.arm))
    found = make_learner("per_redemption").fit(same)
    assert np.array_equal(found.oof, make_learner("x").fit(same).oof)
    assert not np.array_equal(found.oof, make_learner("per_redemption").fit(problem).oof)


def test_customers_who_never_redeem_are_hardly_changed() -> None:
    problem, truth = shop(8_000, 6)
    found = make_learner("per_redemption").fit(problem).oof
    never = truth < np.quantile(truth, 0.2)
    assert (
        np.abs(found[never]).mean() < 0.5 * np.abs(make_learner("x").fit(problem).oof[never]).mean()
    )


def test_a_scale_that_is_the_same_for_all_only_changes_the_unit() -> None:
    problem, _ = shop(2_000, 7)
    problem = replace(problem, settings=replace(SETTINGS, lambda_l2=0.0))
    scale = np.full((problem.folds + 1, len(problem.data)), 0.5)
    X = problem.data.X
    halves = imputed(problem, 1, scale).full.predict(X, 1)
    assert 0.5 * halves == pytest.approx(imputed(problem, 1).full.predict(X, 1), abs=1e-6)
