"""Why an offer: what each feature of a customer adds to the predicted effect of the arm.

    effect of the arm = base + sum over features of their contributions, exactly

Contributions are Shapley values of the trees (TreeSHAP; Lundberg, Erion & Lee 2020). An effect
model is a weighted sum of terms and Shapley values are additive, so those of the effect are the
weighted sums of the terms'. Three kinds of terms need more, and any other kind counts to the base:

- a probability (a booster of log-odds behind a sigmoid): the contributions to the log-odds share
  the difference of the probability to that of the base in proportion (the rescale rule; Shrikumar,
  Greenside & Kundaje 2017);
- a forest kept as arrays, without the covers that TreeSHAP weighs with: each step of the path
  credits its feature with the change of the node's mean (Saabas 2014), nodes weighed by rows that
  are given;
- a product of two: each one's contributions count as much as the other is on average, at its base
  and as predicted (the Shapley values of the two factors).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightgbm as lgb
import numpy as np

from uplift.calibration import ArmCalibration, Calibration
from uplift.data import Float32Array, FloatArray, IntArray, Schema
from uplift.effects import BoosterTerm, EffectModel, ForestTerm, ProductTerm, Term, sigmoid
from uplift.errors import DesignError
from uplift.response import ResponseTerm


@dataclass(frozen=True)
class Why:
    """One decision explained, effects in units of the outcome.

    effect  predicted effect of the arm; base: what is expected of it before anything is known of
            the customer
    top     (feature, its value, its contribution), the largest first, either sign; a value is a
            number, a level's name, or None where missing
    others  what all other features add together
    """

    effect: float
    base: float
    top: tuple[tuple[str, float | str | None, float], ...]
    others: float

    def to_json(self) -> dict[str, Any]:
        return {
            "effect": self.effect,
            "base": self.base,
            "contributions": [
                {"feature": name, "value": value, "contribution": amount}
                for name, value, amount in self.top
            ],
            "other_features": self.others,
        }


class Explainer:
    """Explains the predictions of an effect model.

    It predicts with copies of the model's boosters, one call at a time: asking one LightGBM booster
    for contributions while other threads score with it is not safe, so scoring never waits for an
    explanation nor shares a booster with it.

    Args:
        model: the effects, (K,) of them.
        background: (m, d) rows that weigh the nodes of forests; needed only where there are any.
        calibration: what the effects go through before they decide. Contributions then share what
            it makes of them in proportion (the rescale rule), exact where it is a straight line.
    """

    def __init__(
        self,
        model: EffectModel,
        background: Float32Array | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self._calibration = calibration
        self._lock = threading.Lock()
        self._copies: dict[int, lgb.Booster] = {}
        self._background = background
        self._constant = model.constant
        self._terms = [(self._prepared(term), weights) for term, weights in model.terms]

    def contributions(self, X: Float32Array, arm: IntArray) -> tuple[FloatArray, FloatArray]:
        """(n, d) contributions of the features and (n,) base of the effect of each row's arm
        (n,) codes 1..K; together they are the model's prediction.

        The base of a model with the arm among its features (S) varies with the row: it holds what
        such a model lays on the arm itself. DesignError for a code outside 1..K.
        """
        X = np.ascontiguousarray(X, dtype=np.float32)
        arm = np.asarray(arm, dtype=np.int64)
        if arm.shape != (len(X),) or ((arm < 1) | (arm > len(self._constant))).any():
            raise DesignError(
                f"arm: expected {len(X)} codes from 1 to {len(self._constant)}, found "
                f"{arm.tolist()[:5]}. No offer has no effect to explain."
            )
        values: FloatArray = np.zeros(X.shape)
        base: FloatArray = self._constant[arm - 1].astype(np.float64)
        with self._lock:
            for part, weights in self._terms:
                rows = np.flatnonzero(weights[arm - 1])
                if len(rows):
                    added, start = part.explain(X[rows])
                    weight = weights[arm[rows] - 1]
                    values[rows] += weight[:, None] * added
                    base[rows] += weight * start
        if self._calibration is not None:
            for k, through in enumerate(self._calibration.arms, start=1):
                rows = np.flatnonzero(arm == k)
                values[rows], base[rows] = _rescaled(values[rows], base[rows], through)
        return values, base

    def why(self, X: Float32Array, arm: IntArray, schema: Schema, most: int = 5) -> list[Why]:
        """The `most` largest contributions of each of n rows; X as `schema` encodes it."""
        values, base = self.contributions(X, arm)
        effect = base + values.sum(axis=1)
        first = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :most]
        found = []
        for i, columns in enumerate(first.tolist()):
            top = [
                (schema.names[j], _value(schema, j, float(X[i, j])), float(values[i, j]))
                for j in columns
                if values[i, j] != 0
            ]
            rest = float(effect[i] - base[i]) - sum(amount for _, _, amount in top)
            found.append(Why(float(effect[i]), float(base[i]), tuple(top), rest))
        return found

    def _prepared(self, term: Term) -> _Part:
        if isinstance(term, BoosterTerm):
            key = id(term.booster)
            if key not in self._copies:
                text = term.booster.model_to_string(num_iteration=-1)
                self._copies[key] = lgb.Booster(model_str=text)
            return _Boosted(self._copies[key], term.link, term.appended)
        if isinstance(term, ForestTerm):
            if self._background is None:
                raise DesignError("a forest is explained with background rows: give some")
            return _Forest(term, _node_means(term, self._background))
        if isinstance(term, ResponseTerm):
            odds, slope = self._summed(term.model.log_odds), term.model.slope
            parts = [(part, slope * weight) for part, weight in odds.parts]
            return _Probability(_Sum(term.model.intercept + slope * odds.start, parts))
        if isinstance(term, ProductTerm):
            return _Product(self._summed(term.one), self._summed(term.other))
        return _Opaque(term)

    def _summed(self, model: EffectModel) -> _Sum:
        parts = [(self._prepared(term), float(w[0])) for term, w in model.terms]
        return _Sum(float(model.constant[0]), parts)


def _value(schema: Schema, column: int, value: float) -> float | str | None:
    if np.isnan(value):
        return None
    name = schema.names[column]
    return schema.levels[name][int(value)] if name in schema.levels else float(f"{value:.7g}")


class _Part(Protocol):
    """A term's contributions."""

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        """(n, d) contributions and (n,) base."""
        ...


@dataclass(frozen=True)
class _Opaque(_Part):
    """A term of another kind: nobody can say what a feature adds to it, so all of it is base."""

    term: Term

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        return np.zeros(X.shape), self.term.value(X, 1)


@dataclass(frozen=True)
class _Boosted(_Part):
    booster: lgb.Booster
    link: str
    appended: tuple[float, ...]

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        d = X.shape[1]
        tail = np.tile(np.asarray(self.appended, dtype=np.float32), (len(X), 1))
        raw = self.booster.predict(np.hstack([X, tail]), pred_contrib=True, num_threads=1)
        found = np.asarray(raw, dtype=np.float64)
        values, base = found[:, :d], found[:, d:].sum(axis=1)
        return _through_sigmoid(values, base) if self.link == "sigmoid" else (values, base)


@dataclass(frozen=True)
class _Sum(_Part):
    """start + weighted parts."""

    start: float
    parts: Sequence[tuple[_Part, float]]

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        values, base = np.zeros(X.shape), np.full(len(X), self.start)
        for part, weight in self.parts:
            added, start = part.explain(X)
            values += weight * added
            base += weight * start
        return values, base


@dataclass(frozen=True)
class _Probability(_Part):
    """sigmoid of the log-odds."""

    log_odds: _Sum

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        return _through_sigmoid(*self.log_odds.explain(X))


@dataclass(frozen=True)
class _Product(_Part):
    one: _Part
    other: _Part

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        values, base = self.one.explain(X)
        more, start = self.other.explain(X)
        mean = base + values.sum(axis=1) / 2
        also = start + more.sum(axis=1) / 2
        return values * also[:, None] + more * mean[:, None], base * start


def _rescaled(
    values: FloatArray, base: FloatArray, through: ArmCalibration
) -> tuple[FloatArray, FloatArray]:
    """Contributions to an effect as contributions to what a calibration makes of it. What no
    contribution can carry, since they cancel, counts to the base."""
    step = values.sum(axis=1)
    low, high = through(base), through(base + step)
    none = np.abs(step) <= 1e-9 * np.abs(values).sum(axis=1)
    slope = np.where(none, 0.0, (high - low) / np.where(none, 1.0, step))
    return values * slope[:, None], np.where(none, high, low)


def _through_sigmoid(values: FloatArray, base: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Contributions to log-odds as contributions to the probability, by the rescale rule."""
    step = values.sum(axis=1)
    low, high = sigmoid(base), sigmoid(base + step)
    flat = np.abs(step) < 1e-9
    slope = np.where(flat, low * (1 - low), (high - low) / np.where(flat, 1.0, step))
    return values * slope[:, None], low


@dataclass(frozen=True)
class _Forest(_Part):
    """`mean` (nodes,) of the leaves below each node."""

    term: ForestTerm
    mean: FloatArray

    def explain(self, X: Float32Array) -> tuple[FloatArray, FloatArray]:
        forest, values = self.term, np.zeros(X.shape)
        for root in forest.roots:
            node = np.full(len(X), root)
            active = np.flatnonzero(forest.feature[node] >= 0)
            while len(active):
                at = node[active]
                after = _step(forest, X[active], at)
                values[active, forest.feature[at]] += self.mean[after] - self.mean[at]
                node[active] = after
                active = active[forest.feature[after] >= 0]
        trees = len(forest.roots)
        return values / trees, np.full(len(X), float(self.mean[forest.roots].mean()))


def _step(forest: ForestTerm, X: Float32Array, node: IntArray) -> IntArray:
    """(n,) child of each row's inner node."""
    tested = X[np.arange(len(X)), forest.feature[node]].astype(np.float64)
    goes_left = np.where(
        np.isnan(tested), forest.missing_left[node], tested <= forest.threshold[node]
    )
    out: IntArray = np.where(goes_left, forest.left[node], forest.right[node])
    return out


def _node_means(forest: ForestTerm, background: Float32Array) -> FloatArray:
    """(nodes,) mean of the leaves below, weighed by the background rows that come by; where none
    does, both children count alike."""
    seen = np.zeros(len(forest.feature))
    levels = [np.asarray(forest.roots)]
    for root in forest.roots:
        node = np.full(len(background), root)
        active = np.arange(len(background))
        while len(active):
            np.add.at(seen, node[active], 1.0)
            active = active[forest.feature[node[active]] >= 0]
            node[active] = _step(forest, background[active], node[active])
    while True:
        inner = levels[-1][forest.feature[levels[-1]] >= 0]
        if len(inner) == 0:
            break
        levels.append(np.concatenate([forest.left[inner], forest.right[inner]]))
    mean = forest.leaf[:, forest.output].astype(np.float64)
    for level in reversed(levels):
        inner = level[forest.feature[level] >= 0]
        left, right = forest.left[inner], forest.right[inner]
        both = seen[left] + seen[right]
        share = np.where(both > 0, seen[left] / np.maximum(both, 1.0), 0.5)
        mean[inner] = share * mean[left] + (1 - share) * mean[right]
    return mean
