"""causalml's forests as a learner, their trees taken out as arrays.

Binary outcomes: UpliftRandomForestClassifier (KL divergence). Money: CausalRandomForestRegressor,
because the classifier turns every outcome into `y > 0` and so learns nothing about amounts.
Both grow slowly, so they see at most ROWS rows per fold.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np

from uplift.data import FloatArray, IntArray, stream
from uplift.effects import EffectModel, ForestTerm
from uplift.learners.base import Learner, Models, learner
from uplift.nuisances import Problem

ROWS = 10_000
TREES = 20
DEPTH = 6


@learner
class CausalmlForest(Learner):
    """The average over trees of the leaf's mean in arm k less its mean in control."""

    name = "causalml_forest"
    title = "causalml's uplift or causal forest"
    nuisances = frozenset({"assignment"})
    cannot = frozenset({"monotone"})
    ordinal = True
    joins = False  # its trees are walked in numpy: too slow to be part of every score

    def cross_fit(self, problem: Problem) -> Models:
        forests = []
        for f in range(problem.folds + 1):  # the last one sees the rows of every fold
            rng = stream(problem.seed, f"forest {f}")
            forests.append(self._forest(problem, np.flatnonzero(problem.fold != f), rng))
        return tuple(forests[:-1]), forests[-1]

    @staticmethod
    def _forest(problem: Problem, rows: IntArray, rng: np.random.Generator) -> EffectModel:
        data = problem.data
        # The forests compare plain means of the arms, so where the probabilities differ between
        # customers rows are drawn in proportion to weight / e of their arm. Arms of equal share for
        # everyone keep their shares.
        inverse = data.weight[rows] / data.own_probability[rows]
        expected = np.array([inverse[data.arm[rows] == k].sum() for k in range(data.n_arms + 1)])
        count = np.bincount(data.arm[rows], weights=data.weight[rows], minlength=data.n_arms + 1)
        p = inverse * (count / np.maximum(expected, 1e-300))[data.arm[rows]]
        size = min(ROWS, len(rows))
        varies = np.ptp(p) > 1e-9
        if size < len(rows) or varies:
            rows = rng.choice(rows, size=size, replace=bool(varies), p=p / p.sum())
        rows = np.sort(rows)
        arms, counts = np.unique(data.arm[rows], return_counts=True)
        zero = EffectModel(np.zeros(data.n_arms))
        if len(arms) <= data.n_arms or counts.min() < 2 * _leaf(len(rows)):
            return zero
        forest = _grow(
            data.X[rows],
            data.arm[rows],
            problem.target[rows],
            problem.binary,
            problem.settings.threads,
            int(rng.integers(2**31 - 1)),
        )
        arrays = _arrays(forest)
        terms = [
            (ForestTerm(**arrays, output=k), np.eye(data.n_arms)[k]) for k in range(data.n_arms)
        ]
        return EffectModel(zero.constant, tuple(terms))


def _leaf(rows: int) -> int:
    return max(20, rows // 200)


def _grow(X: Any, arm: IntArray, y: FloatArray, binary: bool, threads: int, seed: int) -> list[Any]:
    """The fitted trees, each with a scikit-learn style `tree_` of values (nodes, K + 1, 1)."""
    # Importing causalml takes over ten seconds, so only whoever fits a forest pays for it.
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from causalml.inference.tree import (
                CausalRandomForestRegressor,
                UpliftRandomForestClassifier,
            )
        finally:
            logging.disable(level)
        common = {
            "n_estimators": TREES,
            "max_depth": DEPTH,
            "min_samples_leaf": _leaf(len(arm)),
            "random_state": seed,
            "n_jobs": threads or -1,
        }
        if binary:
            # Names that sort like the codes: the columns of the leaves follow their order.
            names = np.array([f"arm_{k:03d}" for k in range(int(arm.max()) + 1)])
            forest = UpliftRandomForestClassifier(
                control_name=names[0],
                evaluationFunction="KL",
                min_samples_treatment=10,
                **common,
            )
            forest.fit(X, treatment=names[arm], y=y)
            return list(forest.uplift_forest)
        forest = CausalRandomForestRegressor(control_name=0, min_group_samples=10, **common)
        forest.fit(X=X, treatment=arm, y=y)
        return list(forest.estimators_)


def _arrays(trees: list[Any]) -> dict[str, Any]:
    """The trees' nodes behind each other; leaf values are effects against control."""
    parts = [t.tree_ for t in trees]
    starts = np.cumsum([0, *[p.node_count for p in parts]])
    values = [np.asarray(p.value, dtype=np.float64)[:, :, 0] for p in parts]
    left = [
        np.where(p.children_left < 0, -1, p.children_left + s)
        for p, s in zip(parts, starts, strict=False)
    ]
    right = [
        np.where(p.children_right < 0, -1, p.children_right + s)
        for p, s in zip(parts, starts, strict=False)
    ]
    leaf = np.concatenate([v[:, 1:] - v[:, [0]] for v in values])
    return {
        "feature": np.concatenate([p.feature for p in parts]).astype(np.int64),
        "threshold": np.concatenate([p.threshold for p in parts]).astype(np.float64),
        "missing_left": np.concatenate([p.missing_go_to_left for p in parts]).astype(bool),
        "left": np.concatenate(left).astype(np.int64),
        "right": np.concatenate(right).astype(np.int64),
        # A leaf without rows of an arm says nothing about it.
        "leaf": np.nan_to_num(leaf, nan=0.0),
        "roots": starts[:-1].astype(np.int64),
    }
