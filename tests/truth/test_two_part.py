"""The two-part learner on money with many zeros, where it is meant to help, and elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import TABLE_SETTINGS, make_world, problem_of, training_set
from uplift.data import FloatArray, TrainingSet
from uplift.effects import EffectModel, ProductTerm
from uplift.errors import DesignError
from uplift.learners import make_learner
from uplift.learners.two_part import TwoPartLearner

SETTINGS = replace(TABLE_SETTINGS, rounds=50, learning_rate=0.1)


def zeros(rows: int, seed: int) -> tuple[TrainingSet, FloatArray]:
    made = make_world("zeros", rows, np.random.default_rng([seed, 1]))
    return training_set(made.X, made.arm, made.y, made.assignment), made.tau


def error(name: str, data: TrainingSet, seed: int) -> float:
    """RMSE of the effects on fresh rows."""
    fresh = make_world("zeros", 20_000, np.random.default_rng([seed, 2]))
    effects = make_learner(name).fit(problem_of(data, SETTINGS, 3, seed)).model.predict(fresh.X, 1)
    return float(np.sqrt(np.mean((effects - fresh.tau) ** 2)))


def test_it_is_nearer_than_x_where_most_outcomes_are_zero() -> None:
    found = [
        [error(name, zeros(6_000, seed)[0], seed) for name in ("two_part", "x")]
        for seed in range(3)
    ]
    two_part, x = np.mean(found, axis=0)
    assert two_part < 0.97 * x


def test_an_outcome_without_conversions_apart_is_the_sum_of_its_parts() -> None:
    """What happens without a conversion is learned too where it varies: an effect that lies
    wholly there is found."""
    rng = np.random.default_rng(4)
    n = 8_000
    X = rng.standard_normal((n, 3)).astype(np.float32)
    arm = rng.integers(0, 2, n)
    converted = rng.random(n) < 0.3
    y = np.where(converted, 2.0, -1.0 - 1.5 * arm * (X[:, 0] > 0)) + 0.5 * rng.standard_normal(n)
    data = replace(
        training_set(X, arm, y, np.full((n, 2), 0.5)), converted=converted.astype(np.float64)
    )
    effects = make_learner("two_part").fit(problem_of(data, SETTINGS, 3)).oof[:, 0]
    for high, truth in ((X[:, 0] > 0, -1.05), (X[:, 0] <= 0, 0.0)):
        assert effects[high].mean() == pytest.approx(truth, abs=0.15)


def test_a_cost_of_every_contact_is_in_the_effect() -> None:
    """The same experiment twice, but that every row of the arm pays 0.4 in the second: where
    nobody converts that is all there is."""
    data, _ = zeros(6_000, 5)
    arm = np.random.default_rng(6).integers(0, 2, len(data))
    free = replace(data, arms=("c1",), arm=arm, assignment=np.full((len(data), 2), 0.5))
    paid = replace(free, y=data.y - 0.4 * arm)
    means = [
        make_learner("two_part").fit(problem_of(d, SETTINGS, 3)).oof.mean() for d in (free, paid)
    ]
    assert means[1] - means[0] == pytest.approx(-0.4, abs=0.05)


def test_it_suits_outcomes_that_are_mostly_nothing() -> None:
    data, _ = zeros(2_000, 8)
    assert TwoPartLearner.suits(problem_of(data, SETTINGS, 2))
    often = replace(data, y=np.where(data.y > 0, data.y, 20.0), converted=np.ones(len(data)))
    assert not TwoPartLearner.suits(problem_of(often, SETTINGS, 2))
    moving = replace(data, y=data.y + 5 * np.random.default_rng(9).standard_normal(len(data)))
    assert not TwoPartLearner.suits(problem_of(moving, SETTINGS, 2))
    binary = replace(data, y=data.converted)
    assert not TwoPartLearner.suits(problem_of(binary, SETTINGS, 2))


def test_binary_outcomes_are_refused_by_name() -> None:
    made = make_world("binary", 500, np.random.default_rng(7))
    data = training_set(made.X, made.arm, made.y, made.assignment)
    with pytest.raises(DesignError, match="learner two_part learns money outcomes"):
        TwoPartLearner().fit(problem_of(data, SETTINGS, 2))


def test_a_product_of_models_is_saved_in_one_file() -> None:
    one, other = EffectModel(np.array([3.0])), EffectModel(np.array([-0.5]))
    model = EffectModel(np.array([1.0]), ((ProductTerm(one, other), np.array([2.0])),))
    spec, files = model.to_files("effects")
    X = np.zeros((4, 2), dtype=np.float32)
    assert list(files) == ["effects-000.json"]
    assert EffectModel.from_files(spec, files).predict(X, 1) == pytest.approx(1.0 - 2 * 1.5)
