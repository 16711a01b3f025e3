"""Diagnostics, evaluation and gate on experiments whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from features.errors import DataError
from tests.unit.training.shops import random_experiment, wide_config
from training.diagnostics import srm
from training.gate import RESPONSE_RANKED, SEND_NOTHING, SINGLE
from training.train import Training, run, summary
from uplift.errors import DesignError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _silent(text: str) -> None:
    pass


def train(folder: Path, **sections: object) -> Training:
    return run(wide_config(folder, **sections), _silent)


def test_a_real_effect_passes_and_the_customers_do_not_mix(tmp_path: Path) -> None:
    training = train(random_experiment(tmp_path / "t", 3000, effect=1.5))
    verdict = training.verdict
    assert verdict.promote
    assert verdict.policy == "t"
    assert verdict.value.gain.bound > 0
    # x1 alone decides the effect
    shares = training.evaluation.importance
    assert next(iter(shares)) == "x1"
    assert shares["x1"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    assert f"x1 {shares['x1']:.1%}" in summary(training, wide_config(tmp_path / "t"))
    # only c5 works, and only where x1 > 0: its average effect is .75 less the contact
    effect = training.evaluation.effects["c5"]
    assert effect.lo < 0.75 - 0.05 < effect.hi
    assert not set(training.models.train.cluster) & set(training.models.test.cluster)
    assert set(training.models.train.customer).isdisjoint(training.models.test.customer)


def test_no_effect_sends_nothing(tmp_path: Path) -> None:
    training = train(random_experiment(tmp_path / "t", 3000, effect=0.0))
    assert training.verdict.policy == SEND_NOTHING
    assert training.verdict.promote
    assert not any(training.verdict.bundle.offered)
    tried = list(dict.fromkeys(step.candidate for step in training.verdict.steps))
    assert tried == ["t", RESPONSE_RANKED, SINGLE, SEND_NOTHING]
    for candidate in tried[:-1]:
        steps = [s for s in training.verdict.steps if s.candidate == candidate]
        assert not all(step.passed for step in steps)
    assert training.verdict.challenger.policy == "t"
    assert "send no offer" in training.verdict.reason


def test_observational_effects_never_become_champion_unasked(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 2000, effect=1.5)
    plain = train(folder, experiment={"randomised": False})
    assert not plain.verdict.promote
    assert "observational" in plain.verdict.reason
    settings = {"learners": ["t"], "folds": 2, "threads": 1, "accept_observational": True}
    accepted = train(folder, experiment={"randomised": False}, training=settings)
    assert accepted.verdict.promote
    assert "accepted" in accepted.verdict.reason


def test_shares_that_contradict_the_design_stop_the_training(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 3000)
    design = {"control": 0.5, "c5": 0.25, "tote": 0.25}
    with pytest.raises(DataError, match=r"sample ratio mismatch.*p = "):
        train(folder, experiment={"assignment": design})


def test_srm_is_pearson_for_constant_probabilities(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 1000)
    design = {"control": 0.4, "c5": 0.3, "tote": 0.3}
    data = train(folder, experiment={"assignment": design}).dataset.training
    observed = np.bincount(data.arm, minlength=3)
    expected = stats.chisquare(observed, 1000 * np.array([0.4, 0.3, 0.3]))
    statistic, p = srm(data)
    assert statistic == pytest.approx(expected.statistic, rel=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)


def test_an_unknown_learner_lists_the_known(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 200)
    with pytest.raises(DesignError, match=r"unknown learner 'q', expected .*dr"):
        train(folder, training={"learners": ["q"]})


def test_the_budget_binds_what_is_expected_to_be_spent(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "t", 3000, effect=1.5)
    training = train(folder, policy={"budget": 30.0})
    per_row = 30.0 / 3000
    assert training.evaluation.budget_per_row == pytest.approx(per_row)
    for candidate in training.evaluation.candidates:
        assert candidate.value.predicted_spend <= per_row * (1 + 1e-9)
    for name, rival in training.evaluation.rivals.items():
        spent = 0 if name == "no_offer" else training.evaluation.chosen.value.predicted_spend
        assert rival.predicted_spend == pytest.approx(spent, rel=1e-9)
