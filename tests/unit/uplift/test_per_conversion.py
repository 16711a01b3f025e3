"""Effects per conversion: nearer than X where arms multiply chances, wherever the ratio differs."""

from __future__ import annotations

import numpy as np

from tests.truth.worlds import problem_of, training_set
from uplift.boosting import Settings
from uplift.data import FloatArray
from uplift.learners import LEARNERS, make_learner
from uplift.nuisances import Problem

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=40, threads=1)


def shop(n: int, seed: int, *, ratio: bool = True) -> tuple[Problem, FloatArray]:
    """Few convert; two arms multiply the chance, the second only of some customers (or add to it
    what has nothing to do with it); and the true effects (n, 2)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6)).astype(np.float32)
    x = X.astype(float)
    base = 0.4 / (1 + np.exp(2.5 - 1.2 * x[:, 0] - 0.6 * x[:, 1]))
    some = (x[:, 2] > 0).astype(float)
    if ratio:
        truth = base[:, None] * np.column_stack([np.full(n, 0.4), 0.9 * some])
    else:
        truth = np.column_stack([np.full(n, 0.03), 0.08 * some])
    arm = rng.integers(0, 3, n)
    chance = base + np.column_stack([np.zeros(n), truth])[np.arange(n), arm]
    y = (rng.random(n) < chance).astype(float)
    return problem_of(training_set(X, arm, y, np.full((n, 3), 1 / 3)), SETTINGS, folds=3), truth


def errors(*, ratio: bool) -> dict[str, float]:
    """Root mean squared errors by learner, the mean of four shops; the ensemble is of the first
    two."""
    found: dict[str, list[float]] = {}
    for seed in range(4):
        problem, truth = shop(6_000, seed, ratio=ratio)
        fitted = {name: make_learner(name).fit(problem) for name in ("x", "per_conversion")}
        fitted["ensemble"] = make_learner("ensemble", fitted).fit(problem)
        fitted["proportional"] = make_learner("proportional").fit(problem)
        for name, one in fitted.items():
            found.setdefault(name, []).append(float(np.sqrt(((one.oof - truth) ** 2).mean())))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_it_is_nearer_than_x_and_proportional_where_arms_multiply_chances() -> None:
    error = errors(ratio=True)
    assert error["per_conversion"] < 0.9 * error["x"]
    assert error["per_conversion"] < 0.95 * error["proportional"]
    assert error["ensemble"] < 0.97 * error["x"]


def test_the_ensemble_is_nearer_than_it_where_effects_do_not_follow_the_chance() -> None:
    error = errors(ratio=False)
    assert error["per_conversion"] > 1.2 * error["x"]
    assert error["ensemble"] < 0.9 * error["per_conversion"]


def test_it_and_x_suit_outcomes_of_0_and_1() -> None:
    problem, _ = shop(1_500, 5)
    assert {name for name, one in LEARNERS.items() if one.suits(problem)} == {
        "x",
        "per_conversion",
        "per_redemption",
    }
