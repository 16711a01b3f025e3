"""Probabilities of arms that nobody drew: estimated out of fold, calibrated, clipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.assignment import CLIP, estimate_assignment
from uplift.boosting import Binned, Settings
from uplift.data import FloatArray, TrainingSet, draw_folds
from uplift.learners import make_learner

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)


def chosen_by_traits(
    n: int, *, steep: float = 1.0, seed: int = 0
) -> tuple[TrainingSet, FloatArray]:
    """Arms that follow x0 and x1, recorded with plain shares, and the true probabilities. The
    outcome follows x0 as well; arm 1 adds 1, arm 2 nothing."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)).astype(np.float32)
    odds = np.exp(steep * np.column_stack([np.zeros(n), X[:, 0], -X[:, 1]]).astype(float))
    truth = odds / odds.sum(axis=1, keepdims=True)
    arm = draw_arms(truth, rng)
    y = 2.0 * X[:, 0] + (arm == 1) + rng.standard_normal(n)
    shares = np.bincount(arm, minlength=3) / n
    return training_set(X, arm, y, np.tile(shares, (n, 1))), truth


def estimated(data: TrainingSet) -> tuple[FloatArray, float, FloatArray]:
    """Out-of-fold probabilities, clipped share, and what the served models say of the rows."""
    fold = draw_folds(data.cluster, data.arm, 3, np.random.default_rng(1))
    made = estimate_assignment(data, Binned(data.X, [], 1), fold, SETTINGS)
    return made.probabilities, made.clipped, made.on(data.X, data.assignment > 0, 1)


def test_the_probabilities_are_found_and_calibrated() -> None:
    data, truth = chosen_by_traits(6000)
    p, clipped, served = estimated(data)
    assert p.sum(axis=1) == pytest.approx(np.ones(len(data)))
    assert np.sqrt(np.mean((p - truth) ** 2)) < 0.06
    assert np.sqrt(np.mean((served - truth) ** 2)) < 0.06
    assert not np.array_equal(p, served)
    for k in range(3):  # of the rows that are told a chance of about q, a share q got the arm
        for part in np.array_split(np.argsort(p[:, k]), 5):
            se = np.sqrt(p[part, k].mean() * (1 - p[part, k].mean()) / len(part))
            assert abs((data.arm[part] == k).mean() - p[part, k].mean()) < 4 * se + 0.01
    assert clipped < 0.05


def test_small_probabilities_are_clipped_and_counted() -> None:
    data, truth = chosen_by_traits(3000, steep=4.0)
    p, clipped, _ = estimated(data)
    # A row's chances are scaled to sum to 1 again after the clip.
    assert p.min() > CLIP / (1 + 3 * CLIP)
    # A learned probability is less extreme than the true one, seldom more.
    assert 0.3 < clipped < (truth < CLIP).any(axis=1).mean()


def test_an_arm_that_a_campaign_did_not_have_stays_impossible() -> None:
    data, _ = chosen_by_traits(3000)
    without = (np.arange(3000) % 2 == 0) & (data.arm != 2)
    shares = data.assignment.copy()
    shares[without] = [0.5, 0.5, 0.0]
    p, _, served = estimated(replace(data, assignment=shares))
    for q in (p, served):
        assert (q[without, 2] == 0).all()
        assert (q[~without] > 0).all()
        assert q.sum(axis=1) == pytest.approx(np.ones(3000))


def test_weighted_rows_count_as_often_as_they_weigh() -> None:
    """Rows of arm 1 weighted 3: its share rises as if each stood there three times."""
    data, _ = chosen_by_traits(3000, steep=0.0)
    weight = np.where(data.arm == 1, 3.0, 1.0)
    p, _, _ = estimated(replace(data, weight=weight))
    expected = np.bincount(data.arm, weight) / weight.sum()
    assert p.mean(axis=0) == pytest.approx(expected, abs=0.02)


def test_effects_recover_what_the_choice_of_customers_hid() -> None:
    data, _ = chosen_by_traits(6000)
    naive = data.y[data.arm == 1].mean() - data.y[data.arm == 0].mean()
    p, _, _ = estimated(data)
    made = make_learner("dr").fit(problem_of(replace(data, assignment=p), SETTINGS, 3))
    assert naive > 1.8
    assert made.oof.mean(axis=0) == pytest.approx([1.0, 0.0], abs=0.2)
