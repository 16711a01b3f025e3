"""Worlds whose effects are known: the ones of the known-truth table (statistics.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from uplift.boosting import Binned, Settings
from uplift.data import Float32Array, FloatArray, IntArray, Schema, TrainingSet, draw_folds
from uplift.effects import sigmoid
from uplift.nuisances import Problem, prepare

SHARES = np.array([0.4, 0.2, 0.2, 0.2])

# The settings of the table: 100 trees, 15 leaves, rate .05, min_child_samples 50.
TABLE_SETTINGS = Settings(
    rounds=100,
    learning_rate=0.05,
    num_leaves=15,
    min_child_samples=50,
    feature_fraction=1.0,
    lambda_l2=0.0,
    threads=1,
)


@dataclass(frozen=True)
class World:
    """n rows with what nobody knows in life: `mu` (n, K + 1), the mean under every arm."""

    X: Float32Array
    arm: IntArray
    y: FloatArray
    mu: FloatArray
    assignment: FloatArray

    @property
    def tau(self) -> FloatArray:
        """(n, K) true effects."""
        out: FloatArray = self.mu[:, 1:] - self.mu[:, :1]
        return out


def training_set(
    X: Float32Array,
    arm: IntArray,
    y: FloatArray,
    assignment: FloatArray,
    *,
    cost: FloatArray | None = None,
    cluster: IntArray | None = None,
    schema: Schema | None = None,
) -> TrainingSet:
    """A training set whose reward is its outcome."""
    n, d = X.shape
    cluster = np.arange(n) if cluster is None else cluster
    return TrainingSet(
        schema=schema or Schema(tuple(f"x{j}" for j in range(d)), {}),
        arms=tuple(f"c{k}" for k in range(1, assignment.shape[1])),
        X=X,
        arm=arm,
        y=y,
        reward=y,
        cost=np.zeros(n) if cost is None else cost,
        converted=(y > 0).astype(float),
        assignment=assignment,
        cluster=cluster,
        customer=np.array([f"u{c}" for c in cluster], dtype=object),
        assigned_at=np.full(n, np.datetime64("2025-01-01")),
    )


def problem_of(data: TrainingSet, settings: Settings, folds: int = 5, seed: int = 0) -> Problem:
    """Folds, arm means and scores of a training set's outcome."""
    fold = draw_folds(data.cluster, data.arm, folds, np.random.default_rng(seed))
    binned = Binned(data.X, data.schema.categorical, settings.threads)
    return prepare(data, binned, data.y, fold, settings, seed)


def draw_arms(assignment: FloatArray, rng: np.random.Generator) -> IntArray:
    """(n,) arms drawn with these (n, K + 1) probabilities."""
    drawn = rng.random((len(assignment), 1)) > assignment.cumsum(axis=1)
    return np.minimum(drawn.sum(axis=1), assignment.shape[1] - 1).astype(np.int64)


def make_world(name: str, n: int, rng: np.random.Generator) -> World:
    """n rows of a world of the table."""
    X = rng.standard_normal((n, 10)).astype(np.float32)
    x = X.astype(np.float64)
    mu, assignment = WORLDS[name](x)
    arm = draw_arms(assignment, rng)
    own = mu[np.arange(n), arm]
    y = (rng.random(n) < own).astype(float) if name == "binary" else own + rng.standard_normal(n)
    return World(X, arm, y, mu, assignment)


def _baseline(x: FloatArray) -> FloatArray:
    out: FloatArray = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]
    return out


def _effects(x: FloatArray) -> FloatArray:
    return np.column_stack(
        [0.5 * np.maximum(x[:, 0], 0), 0.3 + 0.3 * np.tanh(x[:, 3]), 0.2 * x[:, 1]]
    )


def _side(control: FloatArray, tau: FloatArray) -> FloatArray:
    return np.column_stack([control, control[:, None] + tau])


def _flat(x: FloatArray) -> FloatArray:
    return np.tile(SHARES, (len(x), 1))


def _null(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _side(_baseline(x), np.zeros((len(x), 3))), _flat(x)


def _constant(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _side(_baseline(x), np.full((len(x), 3), 0.5)), _flat(x)


def _heterogeneous(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _side(_baseline(x), _effects(x)), _flat(x)


def _confounded(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    odds = np.exp(np.column_stack([np.zeros(len(x)), x[:, 0], 0.5 * x[:, 1], -x[:, 0]]))
    return _side(_baseline(x), _effects(x)), odds / odds.sum(axis=1, keepdims=True)


def _rare(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    control = 2 * np.sin(2 * x[:, 0]) + x[:, 1] ** 2
    tau = 0.3 + 0.3 * (x[:, [3]] > 0)
    return _side(control, tau), np.tile([0.95, 0.05], (len(x), 1))


def _binary(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    base = -2.5 + 0.7 * x[:, 0] + 0.4 * x[:, 1]
    shift = np.column_stack(
        [np.zeros(len(x)), 0.8 * (x[:, 2] > 0), np.full(len(x), 0.3), 0.5 * np.tanh(x[:, 3])]
    )
    return sigmoid(base[:, None] + shift), _flat(x)


WORLDS: dict[str, Callable[[FloatArray], tuple[FloatArray, FloatArray]]] = {
    "null": _null,
    "constant": _constant,
    "heterogeneous": _heterogeneous,
    "confounded": _confounded,
    "rare": _rare,
    "binary": _binary,
}
