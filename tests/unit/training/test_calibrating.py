"""Effects and costs are calibrated where the training rows ask for it, and never by test rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.config import Config
from features.sources import open_source
from tests.unit.training.shops import random_experiment, wide_config
from training.dataset import Dataset, build_dataset
from training.evaluate import Candidate, calibrate, evaluate, out_of_fold
from training.fit import Models, fit_models
from training.train import offers_of
from uplift.effects import EffectModel
from uplift.evaluation import Scored
from uplift.learners import Fitted
from uplift.scores import ScoreMatrix

BUDGET = 30.0


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, Dataset, Config]:
    folder = random_experiment(tmp_path_factory.mktemp("k") / "t", 4000, effect=1.5)
    config = wide_config(folder, policy={"budget": BUDGET})
    dataset = build_dataset(open_source(config).tables(), config, offers_of(config))
    return fit_models(dataset, config, offers_of(config), lambda text: None), dataset, config


def with_calibration(kind: str, budget: float | None = BUDGET) -> Config:
    training = {"learners": ["t"], "folds": 2, "threads": 1, "gate": {"calibration": kind}}
    return wide_config(Path("."), policy={"budget": budget}, training=training)


def scaled(models: Models, factor: float) -> Models:
    """The learner's effects about their mean, times a factor."""
    fitted = models.learners["t"]
    mean = fitted.oof.mean(axis=0)
    model = fitted.model.scaled(factor)
    wide = Fitted(
        "t",
        mean + factor * (fitted.oof - mean),
        EffectModel(model.constant + (1 - factor) * mean, model.terms),
        fitted.folds,
    )
    return replace(models, learners={"t": wide})


def chosen(models: Models, dataset: Dataset, config: Config) -> Candidate:
    return evaluate(models, dataset, config, len(dataset.training)).chosen


def test_effects_that_are_too_spread_are_drawn_together(
    parts: tuple[Models, Dataset, Config],
) -> None:
    models, dataset, config = parts
    spread = scaled(models, 3.0)
    raw = chosen(spread, dataset, with_calibration("none"))
    mended = chosen(spread, dataset, config)
    assert raw.calibrating.kind == "none"
    assert raw.bundle.effect_calibration is None
    assert raw.slope.hi < 0.6
    assert mended.calibrating.kind == "linear"
    assert mended.calibrating.slope.hi < 0.6
    assert mended.slope.lo < 1 < mended.slope.hi
    assert mended.value.gain.value > raw.value.gain.value - raw.value.gain.se
    error = "effect_calibration_error"
    assert mended.report.estimates[error].value < raw.report.estimates[error].value / 4
    # what decides on the training rows is calibrated by the other folds
    assert not np.array_equal(mended.oof, raw.oof)


def test_effects_that_are_right_stay(parts: tuple[Models, Dataset, Config]) -> None:
    models, dataset, config = parts
    slope = chosen(scaled(models, 1.0), dataset, config).calibrating.slope.value
    right = chosen(scaled(models, slope), dataset, config)
    assert right.calibrating.slope.value == pytest.approx(1.0, abs=0.1)
    assert right.calibrating.kind == "none"
    assert right.bundle.effect_calibration is None


def test_isotonic_where_it_is_asked_for(parts: tuple[Models, Dataset, Config]) -> None:
    models, dataset, _ = parts
    made = chosen(models, dataset, with_calibration("isotonic"))
    assert made.bundle.effect_calibration is not None
    assert {arm.kind for arm in made.bundle.effect_calibration.arms} == {"isotonic"}
    assert made.slope.lo < 1 < made.slope.hi


def test_the_test_rows_change_neither_calibration_nor_choice(
    parts: tuple[Models, Dataset, Config],
) -> None:
    models, dataset, config = parts
    rng = np.random.default_rng(1)
    test = models.test
    mixed = rng.permutation(len(test))
    other = replace(
        models,
        test=replace(test, y=test.y[mixed], reward=test.reward[mixed] + 5, cost=test.cost[mixed]),
    )
    one, two = (chosen(m, dataset, config) for m in (models, other))
    assert one.bundle.effect_calibration == two.bundle.effect_calibration
    assert one.calibrating == two.calibrating
    assert (one.price, one.validation) == (two.price, two.validation)
    np.testing.assert_array_equal(one.value.policy, two.value.policy)
    assert one.value.gain != two.value.gain


def test_what_the_chosen_cost_is_measured_and_raises_nobodys_cost(
    parts: tuple[Models, Dataset, Config],
) -> None:
    """The chosen cost half as much again: that is told, and each coupon's total stays what was
    paid for it, out of fold."""
    models, dataset, config = parts
    per_row = BUDGET / len(dataset.training)
    evaluation = evaluate(models, dataset, config, len(dataset.training))
    on_train = evaluation.on_train
    dear = Scored(on_train.gain, ScoreMatrix(1.5 * on_train.spend.gamma, on_train.spend.cluster))
    fitted = models.learners["t"]
    plain, told = (
        calibrate(fitted, models, dataset, config, scored, per_row) for scored in (on_train, dear)
    )
    assert plain.calibrating.cost_ratio == pytest.approx(1.0, abs=0.05)
    assert told.calibrating.cost_ratio == pytest.approx(1.5 * plain.calibrating.cost_ratio)
    np.testing.assert_array_equal(plain.bundle.cost_calibration, told.bundle.cost_calibration)
    held = out_of_fold(plain.bundle, plain.oof, models)
    for k in range(held.cost.shape[1]):
        own = models.train.arm == k + 1
        assert held.cost[own, k].sum() == pytest.approx(models.train.cost[own].sum(), rel=1e-9)


def test_without_a_budget_costs_stay(parts: tuple[Models, Dataset, Config]) -> None:
    models, dataset, _ = parts
    free = with_calibration("auto", None)
    assert chosen(models, dataset, free).calibrating.cost_ratio == 1.0
    assert chosen(models, dataset, free).price == 0.0
