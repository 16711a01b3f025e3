"""Policy trees over many experiments: what is said of a rule on held-out rows is true, what it
seems to be worth on its own rows is not, and more customers bring it nearer to the best rule."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from uplift.data import Float32Array, FloatArray
from uplift.nuisances import doubly_robust
from uplift.policy_tree import PolicyTree, fit_policy_tree
from uplift.scores import Estimate, ScoreMatrix, one_hot

SHARES = np.array([0.4, 0.3, 0.3])
RUNS = 1000


def effects(X: Float32Array) -> FloatArray:
    """(n, 2): the first arm for x0 <= 0 and x1 <= .5, the second for x0 > 0, else harm."""
    low = X[:, 0] <= 0
    return np.stack([np.where(low & (X[:, 1] <= 0.5), 0.5, -0.3), np.where(low, -0.4, 0.3)], axis=1)


def experiment(rng: np.random.Generator, n: int) -> tuple[Float32Array, FloatArray]:
    """Features and scores of n customers whose baseline is known only in the mean."""
    X = rng.normal(size=(n, 5)).astype(np.float32)
    arm = rng.choice(3, n, p=SHARES)
    mean = np.column_stack([np.zeros(n), effects(X)])
    y = X[:, 2] + mean[np.arange(n), arm] + rng.normal(size=n)
    assignment = np.tile(SHARES, (n, 1))
    return X, doubly_robust(np.zeros((n, 3)), assignment, arm, y)


class Run(NamedTuple):
    truth: float
    seen: float
    told: Estimate


def grown(rng: np.random.Generator, n: int, population: Float32Array) -> Run:
    X, gamma = experiment(rng, n)
    contrast = gamma[:, 1:] - gamma[:, :1]
    tree = fit_policy_tree(X, contrast, np.zeros_like(contrast), min_leaf=n / 20, candidates=9)
    elsewhere, scores = experiment(rng, n)
    told = ScoreMatrix(scores, np.arange(n)).gain(policy_of(tree, elsewhere))
    seen = float((policy_of(tree, X) * contrast).sum(axis=1).mean())
    truth = float((policy_of(tree, population) * effects(population)).sum(axis=1).mean())
    return Run(truth, seen, told)


def policy_of(tree: PolicyTree, X: Float32Array) -> FloatArray:
    return one_hot(tree.choice(X), 2)


@pytest.mark.slow
def test_held_out_intervals_hold_the_rules_true_value_and_its_own_rows_flatter_it() -> None:
    rng = np.random.default_rng(11)
    population = rng.normal(size=(20_000, 5)).astype(np.float32)
    best = float(np.maximum(effects(population), 0).max(axis=1).mean())
    runs = [grown(rng, 1000, population) for _ in range(RUNS)]
    held = np.mean([run.told.lo <= run.truth <= run.told.hi for run in runs])
    assert 0.93 <= held <= 0.97
    error = np.array([run.told.value - run.truth for run in runs])
    assert abs(error.mean()) <= 3 * error.std() / np.sqrt(RUNS)
    flattered = np.array([run.seen - run.truth for run in runs])
    assert flattered.mean() > 10 * flattered.std() / np.sqrt(RUNS)
    few = best - np.mean([run.truth for run in runs])
    many = best - np.mean([grown(rng, 8000, population).truth for _ in range(40)])
    assert 0 <= many < few / 4
