"""Fit every model of one training: nuisances once, then learners, costs and response."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from features.config import Config
from features.registry import find
from training.dataset import Dataset
from training.tuning import Trials, tune
from uplift.assignment import CLIP, estimate_assignment
from uplift.boosting import Binned, Settings
from uplift.costs import FittedCosts, fit_costs
from uplift.data import (
    BoolArray,
    TrainingSet,
    draw_folds,
    split_customers,
    stream,
)
from uplift.effects import EffectModel, TermValues
from uplift.learners import LEARNERS, Fitted, make_learner
from uplift.nuisances import Problem, prepare
from uplift.offers import Offer
from uplift.response import FittedResponse, fit_response

Progress = Callable[[str], None]
T = TypeVar("T")

# Effects are faint beside outcomes: small trees with many rows to a leaf.
TREES: dict[str, Any] = {"rounds": 100, "num_leaves": 6, "learning_rate": 0.08}
LEAVES_OF_ROWS = 300
AVERAGE = "average"
_SIGNS = {"rising": 1, "falling": -1}


@dataclass(frozen=True)
class Models:
    """Everything fitted on the training rows, and the rows apart.

    train, test  disjoint sets: no cluster stands in both
    outcome      the problem in units of the outcome; `money`, the same in currency (the same
                 object where the outcome is the profit)
    learners     by name; `seconds`, what each took
    tuning       the trials of other settings, where there were any
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
    tuning: Trials | None = None

    @cached_property
    def at_test(self) -> TermValues:
        """What the models' terms give at the test rows, each computed once."""
        return TermValues(self.test.X, self.outcome.settings.threads)


def settings_of(config: Config, rows: int) -> Settings:
    """LightGBM settings for so many training rows."""
    return Settings(
        seed=config.training.seed,
        threads=config.training.threads,
        min_child_samples=max(20, rows // LEAVES_OF_ROWS),
        **TREES,
    )


def leading_features(config: Config, names: Sequence[str]) -> tuple[int, ...]:
    """Positions of the core set in the whole catalogue, where that is what is learned from."""
    if config.features.set != "all":
        return ()
    core = tuple(i for i, name in enumerate(names) if (known := find(name)) and known.core)
    return core if len(core) < len(names) else ()


def fit_models(
    dataset: Dataset, config: Config, offers: tuple[Offer, ...], progress: Progress
) -> Models:
    """Split by cluster, cross-fit nuisances, learners, costs and response on the training rows."""
    data = dataset.training
    rng = stream(config.training.seed, "split")
    is_test = split_customers(
        data.customer, data.cluster, config.training.test_share, config.training.seed
    )
    train, test = data.rows(~is_test), data.rows(is_test)
    leading = leading_features(config, data.schema.names)
    settings = replace(settings_of(config, len(train)), leading=leading)
    fold = draw_folds(train.cluster, train.arm, config.training.folds, rng)
    binned = Binned(train.X, data.schema.categorical, settings.threads)
    if dataset.estimated:
        estimated = estimate_assignment(train, binned, fold, settings)
        progress(
            "assignment estimated (not randomised): in "
            f"{estimated.clipped:.1%} of the rows an arm is clipped at {CLIP:.0%}"
        )
        elsewhere = estimated.on(test.X, test.assignment > 0, settings.threads)
        train = replace(train, assignment=estimated.probabilities)
        test = replace(test, assignment=elsewhere)
    seconds: dict[str, float] = {}
    with_clock = _Clock(seconds, progress)
    signs = {name: _SIGNS[way] for name, way in config.training.monotone.items()}
    outcome = with_clock(
        "nuisances",
        lambda: prepare(train, binned, train.y, fold, settings, config.training.seed, signs),
    )
    same = np.array_equal(train.y, train.reward)
    money = (
        outcome
        if same
        else with_clock(
            "money",
            lambda: prepare(
                train,
                binned,
                train.reward,
                fold,
                settings,
                config.training.seed,
                held=outcome.held,
            ),
        )
    )
    began = time.monotonic()
    names = learner_names(config, outcome)
    outcome, trials = tune(outcome, names, config.training.tuning, config.training.seed, progress)
    if trials is not None:
        seconds["tuning"] = time.monotonic() - began
    money = outcome if same else money
    learners: dict[str, Fitted] = {}
    # What combines others comes after them.
    for name in sorted(names, key=lambda name: make_learner(name).combines):
        learners[name] = with_clock(name, partial(make_learner(name, learners).fit, outcome))
    for held in outcome.held:
        held.forget()
    joining = [fitted for name, fitted in learners.items() if LEARNERS[name].joins]
    if len(joining) > 1 and not any(LEARNERS[name].combines for name in learners):
        learners[AVERAGE] = average(joining)
        seconds[AVERAGE] = sum(seconds[fitted.name] for fitted in joining)
    costs = with_clock("costs", lambda: fit_costs(train, binned, fold, settings))
    control = np.flatnonzero(train.arm == 0)
    response = with_clock(
        "response",
        lambda: fit_response(
            binned,
            train.X,
            control,
            train.converted[control],
            fold,
            settings,
            weight=train.weight_of(control),
        ),
    )
    return Models(
        train, test, is_test, outcome, money, learners, seconds, costs, response, offers, trials
    )


def learner_names(config: Config, problem: Problem) -> list[str]:
    """The learners to fit. Who names one gets it or is told why not; of those that nobody named,
    the ones that learn no such outcome are left out."""
    names = config.training.learners
    if "learners" in config.training.model_fields_set:
        return names
    return [name for name in names if problem.kind in LEARNERS[name].outcomes]


def average(learners: list[Fitted]) -> Fitted:
    """The mean of several learners' effects: their errors differ, so the mean is calmer."""
    share = 1 / len(learners)
    parts = [fitted.model.scaled(share) for fitted in learners]
    model = EffectModel(
        np.sum([part.constant for part in parts], axis=0),
        tuple(term for part in parts for term in part.terms),
    )
    oof = np.mean([fitted.oof for fitted in learners], axis=0)
    return Fitted(AVERAGE, oof, model, ())


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
