"""Experiments that every learner is put to, and the learners fitted to them once."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Settings
from uplift.data import Float32Array, Schema, TrainingSet
from uplift.learners import LEARNERS, make_learner
from uplift.learners.base import Fitted
from uplift.learners.ensemble import MEMBERS
from uplift.nuisances import Problem

SETTINGS = Settings(
    rounds=30, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1, seed=3
)
FOLDS = 3
NAMES = sorted(LEARNERS)
OUTCOMES = ("binary", "money")
UNIT = {"binary": 0.35, "money": 2.0}
every_learner = pytest.mark.parametrize("name", NAMES)
every_outcome = pytest.mark.parametrize("outcome", OUTCOMES)
EXERCISED: set[tuple[str, str]] = set()


def experiment(
    outcome: str, effect: str = "varied", *, rows: int = 1800, seed: int = 5
) -> TrainingSet:
    """Two arms; customers of two rows each; NaN, a category, and probabilities that differ
    between customers.

    effect: varied (differs between customers), zero, constant (UNIT for the first arm and half
    of it for the second), or proportional (of the baseline, UNIT at its highest for the first arm
    and half of it for the second).
    """
    rng = np.random.default_rng([seed, OUTCOMES.index(outcome)])
    customers = rows // 2
    traits = rng.standard_normal((customers, 4)).astype(np.float32)
    X = np.repeat(traits, 2, axis=0)
    X[:, 1] += rng.standard_normal(rows).astype(np.float32)
    X[:, 3] = np.repeat(rng.integers(0, 4, customers), 2)
    X[rng.random(X.shape) < 0.08] = np.nan
    x = np.nan_to_num(X.astype(np.float64))
    assignment = np.where(x[:, [0]] > 0, [[0.5, 0.3, 0.2]], [[0.3, 0.4, 0.3]])
    arm = draw_arms(assignment, rng)
    base = (x[:, 0] > 0).astype(float)
    control = 0.2 + 0.2 * base if outcome == "binary" else 3 * base
    size = {
        "varied": np.column_stack([x[:, 2] > 0, x[:, 3] >= 2]).astype(float),
        "zero": np.zeros((rows, 2)),
        "constant": np.tile([1.0, 0.5], (rows, 1)),
        "proportional": np.outer(control / control.max(), [1.0, 0.5]),
    }[effect]
    shift = np.column_stack([np.zeros(rows), size])[np.arange(rows), arm]
    if outcome == "binary":
        y = (rng.random(rows) < control + UNIT[outcome] * shift).astype(float)
    else:
        y = control + UNIT[outcome] * shift + rng.standard_normal(rows)
    schema = Schema(("a", "b", "c", "d"), {"d": ("k", "l", "m", "n")})
    cluster = np.repeat(np.arange(customers), 2)
    return training_set(X, arm, y, assignment, cluster=cluster, schema=schema)


@functools.cache
def problem(outcome: str, effect: str = "varied") -> Problem:
    return problem_of(experiment(outcome, effect), SETTINGS, FOLDS)


@functools.cache
def fitted(name: str, outcome: str, effect: str = "varied") -> Fitted:
    EXERCISED.add((name, outcome))
    able = [n for n in MEMBERS if outcome in LEARNERS[n].outcomes]
    others = {n: fitted(n, outcome, effect) for n in able} if LEARNERS[name].combines else {}
    return make_learner(name, others).fit(problem(outcome, effect))


def learns(name: str, outcome: str) -> None:
    if outcome not in LEARNERS[name].outcomes:
        pytest.skip(f"{name} declares that it does not learn {outcome} outcomes")


def fresh(outcome: str, rows: int = 40) -> Float32Array:
    X = experiment(outcome, seed=6).X[:rows].copy()
    X[0] = np.nan  # a customer of whom nothing is known
    return X
