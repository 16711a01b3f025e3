"""Simulated experiments whose effects are known: every arm's mean for every customer.

X ~ N(0, I), ten features or more, of which the first four matter; outcomes have noise of standard
deviation 1, but for `binary` (0 or 1) and `zeros` (most buy nothing, the others for amounts that
are gamma distributed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from uplift.data import Float32Array, FloatArray, IntArray, Schema, TrainingSet
from uplift.effects import sigmoid

SHARES = (0.4, 0.2, 0.2, 0.2)
FEATURES = 10
Means = tuple[FloatArray, FloatArray]


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


def make_world(name: str, n: int, rng: np.random.Generator, features: int = FEATURES) -> World:
    """n rows of the world of that name; what is beyond the first four features is noise."""
    X = rng.standard_normal((n, features)).astype(np.float32)
    x = X.astype(np.float64)
    mu, assignment = WORLDS[name](x)
    arm = draw_arms(assignment, rng)
    own = mu[np.arange(n), arm]
    if name == "binary":
        y = (rng.random(n) < own).astype(float)
    elif name == "zeros":
        basket = _basket(x)
        y = (rng.random(n) < own / basket) * basket * rng.gamma(2.0, 0.5, n)
    else:
        y = own + rng.standard_normal(n)
    return World(X, arm, y, mu, assignment)


def draw_arms(assignment: FloatArray, rng: np.random.Generator) -> IntArray:
    """(n,) arms drawn with these (n, K + 1) probabilities."""
    drawn = rng.random((len(assignment), 1)) > assignment.cumsum(axis=1)
    arms: IntArray = np.minimum(drawn.sum(axis=1), assignment.shape[1] - 1).astype(np.int64)
    return arms


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


def _baseline(x: FloatArray) -> FloatArray:
    out: FloatArray = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]
    return out


def _effects(x: FloatArray) -> FloatArray:
    return np.column_stack(
        [0.5 * np.maximum(x[:, 0], 0), 0.3 + 0.3 * np.tanh(x[:, 3]), 0.2 * x[:, 1]]
    )


def _basket(x: FloatArray) -> FloatArray:
    out: FloatArray = 20 * np.exp(0.3 * x[:, 2])
    return out


def _side(control: FloatArray, tau: FloatArray) -> FloatArray:
    return np.column_stack([control, control[:, None] + tau])


def _flat(x: FloatArray, shares: tuple[float, ...] = SHARES) -> FloatArray:
    return np.tile(shares, (len(x), 1))


def _null(x: FloatArray) -> Means:
    return _side(_baseline(x), np.zeros((len(x), 3))), _flat(x)


def _constant(x: FloatArray) -> Means:
    return _side(_baseline(x), np.full((len(x), 3), 0.5)), _flat(x)


def _heterogeneous(x: FloatArray) -> Means:
    return _side(_baseline(x), _effects(x)), _flat(x)


def _sparse(x: FloatArray) -> Means:
    """One customer in ten is changed by each arm, and not the same one."""
    changed = np.column_stack([x[:, 0] > 1.28, x[:, 3] > 1.28, x[:, 1] < -1.28])
    return _side(_baseline(x), changed * np.array([1.0, 0.8, 0.6])), _flat(x)


def _confounded(x: FloatArray) -> Means:
    odds = np.exp(np.column_stack([np.zeros(len(x)), x[:, 0], 0.5 * x[:, 1], -x[:, 0]]))
    return _side(_baseline(x), _effects(x)), odds / odds.sum(axis=1, keepdims=True)


def _unequal(x: FloatArray) -> Means:
    """Control 80%, the arms 5% and 15%."""
    return _side(_baseline(x), _effects(x)[:, :2]), _flat(x, (0.8, 0.05, 0.15))


def _rare(x: FloatArray) -> Means:
    control = 2 * np.sin(2 * x[:, 0]) + x[:, 1] ** 2
    tau: FloatArray = 0.3 + 0.3 * (x[:, [3]] > 0).astype(np.float64)
    return _side(control, tau), _flat(x, (0.95, 0.05))


def _binary(x: FloatArray) -> Means:
    base = -2.5 + 0.7 * x[:, 0] + 0.4 * x[:, 1]
    shift = np.column_stack(
        [np.zeros(len(x)), 0.8 * (x[:, 2] > 0), np.full(len(x), 0.3), 0.5 * np.tanh(x[:, 3])]
    )
    return sigmoid(base[:, None] + shift), _flat(x)


def _zeros(x: FloatArray) -> Means:
    """Who buys anyway buys more with a coupon: most effects follow the baseline."""
    base = -2.0 + 0.7 * x[:, 0] + 0.4 * x[:, 1]
    shift = np.column_stack(
        [np.zeros(len(x)), np.full(len(x), 0.4), 0.6 * (x[:, 3] > 0), np.full(len(x), 0.1)]
    )
    return sigmoid(base[:, None] + shift) * _basket(x)[:, None], _flat(x)


WORLDS: dict[str, Callable[[FloatArray], Means]] = {
    "null": _null,
    "constant": _constant,
    "heterogeneous": _heterogeneous,
    "sparse": _sparse,
    "confounded": _confounded,
    "unequal": _unequal,
    "rare": _rare,
    "binary": _binary,
    "zeros": _zeros,
}
