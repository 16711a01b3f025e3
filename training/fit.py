"""Fit every model of one training: nuisances once, then learners, costs and response."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from features.config import Config
from training.dataset import Dataset
from uplift.boosting import Binned, Settings, cross_fit
from uplift.costs import FittedCosts, fit_costs
from uplift.data import (
    BoolArray,
    FloatArray,
    IntArray,
    TrainingSet,
    draw_folds,
    split_clusters,
    stream,
)
from uplift.effects import EffectModel
from uplift.learners import Fitted, make_learner
from uplift.nuisances import Problem, prepare
from uplift.offers import Offer
from uplift.response import FittedResponse, fit_response

Progress = Callable[[str], None]
T = TypeVar("T")

# Effects are faint beside outcomes: small trees with many rows to a leaf.
TREES: dict[str, Any] = {"rounds": 100, "num_leaves": 6, "learning_rate": 0.08}
LEAVES_OF_ROWS = 300
AVERAGE = "average"
# An estimated probability is clipped; a known one never.
CLIP = 0.01


@dataclass(frozen=True)
class Models:
    """Everything fitted on the training rows, and the rows apart.

    train, test  disjoint sets: no cluster stands in both
    outcome      the problem in units of the outcome; `money`, the same in currency (the same
                 object where the outcome is the profit)
    learners     by name; `seconds`, what each took
    """

    train: TrainingSet
    test: TrainingSet
    is_test: BoolArray
    outcome: Problem
    money: Problem
    learners: Mapping[str, Fitted]
    seconds: Mapping[str, float]
    costs: FittedCosts
    response: FittedResponse
    offers: tuple[Offer, ...]


def settings_of(config: Config, rows: int) -> Settings:
    """LightGBM settings for so many training rows."""
    return Settings(
        seed=config.training.seed,
        threads=config.training.threads,
        min_child_samples=max(20, rows // LEAVES_OF_ROWS),
        **TREES,
    )


def fit_models(
    dataset: Dataset, config: Config, offers: tuple[Offer, ...], progress: Progress
) -> Models:
    """Split by cluster, cross-fit nuisances, learners, costs and response on the training rows."""
    data = dataset.training
    rng = stream(config.training.seed, "split")
    is_test = split_clusters(data.cluster, config.training.test_share, rng)
    train, test = data.rows(~is_test), data.rows(is_test)
    settings = settings_of(config, len(train))
    fold = draw_folds(train.cluster, train.arm, config.training.folds, rng)
    binned = Binned(train.X, data.schema.categorical, settings.threads)
    if dataset.estimated:
        progress("assignment model (not randomised)")
        train, test = _estimate_assignment(train, test, binned, fold, settings)
    seconds: dict[str, float] = {}
    with_clock = _Clock(seconds, progress)
    outcome = with_clock(
        "nuisances", lambda: prepare(train, binned, train.y, fold, settings, config.training.seed)
    )
    same = np.array_equal(train.y, train.reward)
    money = (
        outcome
        if same
        else with_clock(
            "money",
            lambda: prepare(train, binned, train.reward, fold, settings, config.training.seed),
        )
    )
    learners: dict[str, Fitted] = {}
    for name in config.training.learners:
        learners[name] = with_clock(name, partial(make_learner(name).fit, outcome))
    boosted = [fitted for name, fitted in learners.items() if name != "causalml_forest"]
    if len(boosted) > 1:
        learners[AVERAGE] = average(boosted)
        seconds[AVERAGE] = sum(seconds[fitted.name] for fitted in boosted)
    costs = with_clock("costs", lambda: fit_costs(train, binned, fold, settings))
    control = np.flatnonzero(train.arm == 0)
    response = with_clock(
        "response",
        lambda: fit_response(binned, train.X, control, train.converted[control], fold, settings),
    )
    return Models(train, test, is_test, outcome, money, learners, seconds, costs, response, offers)


def average(learners: list[Fitted]) -> Fitted:
    """The mean of several learners' effects: their errors differ, so the mean is calmer."""
    share = 1 / len(learners)
    parts = [fitted.model.scaled(share) for fitted in learners]
    model = EffectModel(
        np.sum([part.constant for part in parts], axis=0),
        tuple(term for part in parts for term in part.terms),
    )
    return Fitted(AVERAGE, np.mean([fitted.oof for fitted in learners], axis=0), model)


class _Clock:
    """Times pieces of work under a name, and says so."""

    def __init__(self, seconds: dict[str, float], progress: Progress) -> None:
        self.seconds, self.progress = seconds, progress

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = work()
        self.seconds[name] = time.monotonic() - started
        self.progress(f"{name}: {self.seconds[name]:.1f} s")
        return result


def _estimate_assignment(
    train: TrainingSet, test: TrainingSet, binned: Binned, fold: IntArray, settings: Settings
) -> tuple[TrainingSet, TrainingSet]:
    """Replace shares by estimated probabilities P(arm | x): one model per arm out of fold,
    at least CLIP and scaled to sum to 1. An arm that the row's campaign did not have stays
    impossible."""
    train_odds = np.empty_like(train.assignment)
    test_odds = np.empty_like(test.assignment)
    rows = np.arange(len(train))
    for k in range(train.n_arms + 1):
        drawn = (train.arm == k).astype(float)
        fitted = cross_fit(binned, rows, drawn, fold, settings, binary=True)
        train_odds[:, k] = fitted.out_of_fold(train.X, fold, settings.threads)
        test_odds[:, k] = fitted.full.predict(test.X, settings.threads)[:, 0]
    return (
        replace(train, assignment=_normalised(train_odds, train.assignment)),
        replace(test, assignment=_normalised(test_odds, test.assignment)),
    )


def _normalised(odds: FloatArray, design: FloatArray) -> FloatArray:
    possible = design > 0
    p = np.where(possible, np.clip(odds, CLIP, 1.0), 0.0)
    out: FloatArray = p / p.sum(axis=1, keepdims=True)
    return out
