"""Worlds whose effects are known: the ones of the known-truth table (statistics.md, section 3)."""

from __future__ import annotations

import numpy as np

from benchmarks.worlds import World, draw_arms, make_world, training_set
from uplift.boosting import Binned, Settings
from uplift.data import TrainingSet, draw_folds
from uplift.nuisances import Problem, prepare

__all__ = [
    "TABLE_SETTINGS",
    "WORLDS",
    "World",
    "draw_arms",
    "make_world",
    "problem_of",
    "training_set",
]

WORLDS = ("null", "constant", "heterogeneous", "confounded", "rare", "binary")

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


def problem_of(data: TrainingSet, settings: Settings, folds: int = 5, seed: int = 0) -> Problem:
    """Folds, arm means and scores of a training set's outcome."""
    fold = draw_folds(data.cluster, data.arm, folds, np.random.default_rng(seed))
    binned = Binned(data.X, data.schema.categorical, settings.threads)
    return prepare(data, binned, data.y, fold, settings, seed)
