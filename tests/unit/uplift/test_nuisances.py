"""The shared store: means out of fold, contrasts and their weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Settings, cross_fit
from uplift.effects import EffectModel
from uplift.nuisances import Problem, against_control, doubly_robust, realised, stack

SETTINGS = Settings(rounds=40, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)


def make(binary: bool = False, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    n = 1500
    X = rng.standard_normal((n, 3)).astype(np.float32)
    high = (X[:, 1] > 0)[:, None]
    assignment = np.where(high, [[0.6, 0.4, 0.0]], [[0.3, 0.3, 0.4]])
    arm = draw_arms(assignment, rng)
    y = X[:, 0] + arm + 0.5 * rng.standard_normal(n)
    if binary:
        y = (y > 0.5).astype(float)
    return problem_of(training_set(X, arm, y, assignment), SETTINGS, folds=3)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make()


def test_the_means_are_those_of_the_arms(problem: Problem) -> None:
    X = problem.data.X
    for k in range(3):
        truth = X[:, 0] + k
        assert np.sqrt(np.mean((problem.mu[:, k] - truth) ** 2)) < 0.45
    full = problem.mean_on(X)
    assert full.shape == problem.mu.shape
    assert np.corrcoef(full.ravel(), problem.mu.ravel())[0, 1] > 0.97
    assert not np.array_equal(full, problem.mu)


def test_each_mean_comes_from_the_fold_that_left_the_row_out(problem: Problem) -> None:
    assert problem.folds == 3
    for f, model in enumerate(problem.arm_means):
        held = problem.fold == f
        assert np.array_equal(problem.mu[held], model.predict(problem.data.X[held], 1))


def test_scores_correct_the_drawn_arm_only(problem: Problem) -> None:
    data = problem.data
    assert not problem.binary
    expected = problem.mu.copy()
    share = realised(data.assignment, data.arm)
    for i in range(len(data)):
        k = data.arm[i]
        expected[i, k] += (data.y[i] - problem.mu[i, k]) / share[i, k]
    np.testing.assert_allclose(problem.gamma, expected, rtol=1e-12)


def test_a_small_probability_is_never_clipped() -> None:
    gamma = doubly_robust(
        np.zeros((1, 2)), np.array([[0.999, 0.001]]), np.array([1]), np.array([2.0])
    )
    assert gamma[0, 1] == pytest.approx(2000.0)


def test_contrasts_hold_the_rows_that_could_get_the_arm(problem: Problem) -> None:
    e = problem.data.assignment
    rows, contrast, weight = problem.contrast(2)
    assert np.array_equal(rows, np.flatnonzero(e[:, 2] > 0))
    assert np.array_equal(contrast, problem.gamma[rows, 2] - problem.gamma[rows, 0])
    assert weight == pytest.approx(np.ones(len(rows)))  # the same chances for all of them
    rows, _, weight = problem.contrast(1)
    assert len(rows) == len(problem.data)
    high = e[rows, 0] == 0.6
    # 1 / (1/.4 + 1/.6) = .24 and 1 / (1/.3 + 1/.3) = .15
    assert weight[high].mean() / weight[~high].mean() == pytest.approx(0.24 / 0.15)
    assert weight.mean() == pytest.approx(1.0)


def test_binary_outcomes_get_probabilities() -> None:
    made = make(binary=True)
    assert made.binary
    assert ((made.mu > 0) & (made.mu < 1)).all()
    assert not make().binary


def test_stack_and_contrast_of_constants() -> None:
    models = [EffectModel(np.array([float(c)])) for c in (1, 4, 6)]
    assert stack(models).constant.tolist() == [1, 4, 6]
    assert against_control(stack(models)).constant.tolist() == [3, 5]


def test_effects_against_control_are_differences(problem: Problem) -> None:
    X = problem.data.X[:200]
    means = problem.full_means.predict(X, 1)
    effects = against_control(problem.full_means).predict(X, 1)
    np.testing.assert_allclose(effects, means[:, 1:] - means[:, :1], atol=1e-12)


def test_realised_shares_replace_a_constant_design_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    arm = rng.choice(3, 900, p=[0.5, 0.3, 0.2])
    design = np.tile([0.5, 0.3, 0.2], (900, 1))
    shares = np.bincount(arm, minlength=3) / 900
    np.testing.assert_allclose(realised(design, arm), np.tile(shares, (900, 1)))
    varying = rng.dirichlet([5, 5, 5], 900)
    np.testing.assert_array_equal(realised(varying, arm), varying)
    # two strata, one too small to be counted; an arm that could not be drawn stays impossible
    two = np.vstack([np.tile([0.6, 0.4, 0.0], (60, 1)), design])
    arms = np.concatenate([np.arange(60) % 2, arm])
    np.testing.assert_array_equal(realised(two, arms)[:60], two[:60])
    np.testing.assert_allclose(realised(two, arms)[60:], np.tile(shares, (900, 1)))


def test_realised_shares_narrow_the_inverse_probability_estimate() -> None:
    """With means of zero the score is inverse probability weighting, and y is mostly level."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(200):
        arm = rng.choice(2, 600, p=[0.7, 0.3])
        y = 5 + 0.5 * (arm == 1) + rng.normal(size=600)
        e = np.tile([0.7, 0.3], (600, 1))
        pair = [doubly_robust(np.zeros((600, 2)), p, arm, y) for p in (e, realised(e, arm))]
        found.append([float((g[:, 1] - g[:, 0]).mean()) for g in pair])
    error = np.array(found) - 0.5
    assert error[:, 1].std() < 0.4 * error[:, 0].std()
    assert abs(error[:, 1].mean()) < 3 * error[:, 1].std() / np.sqrt(200)


def test_losses_tell_true_effects_from_others_as_squared_errors_do(problem: Problem) -> None:
    """By hand, row by row; and the mean difference of two sets of effects is that of their weighted
    squared errors (the effects are 1 and 2), but for the noise of the scores."""
    data = problem.data
    rng = np.random.default_rng(5)
    right = np.tile([1.0, 2.0], (len(data), 1))
    wrong = right + rng.uniform(0, 1, right.shape)
    by_hand = np.zeros(len(data))
    squared = np.zeros(len(data))
    for i in range(len(data)):
        e = data.assignment[i]
        for k in (1, 2):
            if e[k] > 0 and e[0] > 0:
                weight = 1 / (1 / e[k] + 1 / e[0])
                gap = problem.gamma[i, k] - problem.gamma[i, 0]
                by_hand[i] += weight * (gap - wrong[i, k - 1]) ** 2
                squared[i] += weight * (right[i, k - 1] - wrong[i, k - 1]) ** 2
    found = problem.losses(wrong)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    gain = found - problem.losses(right) - squared
    assert abs(gain.mean()) < 4 * gain.std() / np.sqrt(len(data))
    assert squared.mean() > 4 * gain.std() / np.sqrt(len(data))


def test_effects_of_many_features_have_greater_leaves_than_the_means() -> None:
    rng = np.random.default_rng(4)
    X = rng.standard_normal((600, 50)).astype(np.float32)
    assignment = np.full((600, 2), 0.5)
    arm = draw_arms(assignment, rng)
    wide = problem_of(training_set(X, arm, X[:, 0] + arm, assignment), SETTINGS, folds=2)
    assert wide.settings.min_child_samples == 20
    (alone,) = wide.effect_settings
    assert alone.min_child_samples == 50
    (rising,) = replace(wide, monotone={wide.data.schema.names[0]: 1}).effect_settings
    assert rising.min_child_samples == 50
    assert rising.extra["monotone_constraints"] == [1] + 49 * [0]


def test_an_effect_is_the_mean_of_what_leading_features_and_all_features_tell() -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((3000, 30)).astype(np.float32)
    assignment = np.full((3000, 2), 0.5)
    arm = draw_arms(assignment, rng)
    y = X[:, 0] + arm * (X[:, 3] + X[:, 9]) + rng.standard_normal(3000)
    plain = problem_of(training_set(X, arm, y, assignment), SETTINGS, folds=2)
    first = plain.data.schema.names[3]
    led = replace(
        plain, settings=replace(plain.settings, leading=(3, 4)), monotone={first: 1}
    )  # fmt: skip
    on_all, on_some = led.effect_settings
    assert on_all.min_child_samples == 30
    assert on_some.min_child_samples == 20
    rows, contrast, weight = led.contrast(1)
    one, other = (
        cross_fit(led.binned, rows, contrast, led.fold, way, weight=weight)
        for way in (on_all, on_some)
    )
    both = led.cross_fit_effect(rows, contrast, weight=weight)
    for mean, a, b in zip(
        (*both.models, both.full), (*one.models, one.full), (*other.models, other.full), strict=True
    ):
        np.testing.assert_allclose(
            mean.predict(X, 1), (a.predict(X, 1) + b.predict(X, 1)) / 2, rtol=1e-12
        )
    moved = X.copy()
    moved[:, [i for i in range(30) if i not in (3, 4)]] = 7.0
    np.testing.assert_array_equal(other.full.predict(moved, 1), other.full.predict(X, 1))
    assert np.ptp(other.full.predict(X, 1)) > 1.0
    assert (one.full.predict(moved, 1) != one.full.predict(X, 1)).any()
    rising = X.copy()
    rising[:, 3] += 1.0
    assert (both.full.predict(rising, 1) >= both.full.predict(X, 1)).all()
