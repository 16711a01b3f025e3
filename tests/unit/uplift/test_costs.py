"""Expected costs: what was paid in total, and right for those whom a policy chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, training_set
from uplift.boosting import Binned, Settings
from uplift.costs import calibrate_costs, calibrated, fit_costs, in_order, unchanged
from uplift.data import TrainingSet, draw_folds
from uplift.evaluation import Predictions, model_policy

SETTINGS = Settings(rounds=40, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)
SHARES = np.array([0.4, 0.3, 0.3])


def experiment(n: int, seed: int) -> tuple[TrainingSet, np.ndarray]:
    """Coupons of 5 and 10, redeemed by chance; and the true expected costs (n, K)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)).astype(np.float32)
    x = X.astype(float)
    chance = np.clip(0.25 + 0.15 * x[:, 0] + 0.1 * (x[:, 1] > 1), 0.02, 0.95)
    truth = chance[:, None] * np.array([5.0, 10.0]) + 0.05
    assignment = np.tile(SHARES, (n, 1))
    arm = draw_arms(assignment, rng)
    redeemed = rng.random(n) < chance
    cost = np.where(arm > 0, redeemed * np.array([0.0, 5.0, 10.0])[arm] + 0.05, 0.0)
    return training_set(X, arm, x[:, 0], assignment, cost=cost), truth


def test_expected_totals_what_was_paid_out_of_fold() -> None:
    data, truth = experiment(4000, 1)
    fold = draw_folds(data.cluster, data.arm, 4, np.random.default_rng(2))
    made = fit_costs(data, Binned(data.X, [], 1), fold, SETTINGS)
    for k in (1, 2):
        rows = data.arm == k
        assert made.oof[rows, k - 1].sum() == pytest.approx(data.cost[rows].sum(), rel=1e-12)
    assert made.ratio == pytest.approx([1.0, 1.0], abs=0.05)
    # The cost of every arm for every customer, whichever arm they had.
    assert np.corrcoef(made.oof.ravel(), truth.ravel())[0, 1] > 0.8
    assert made.oof.mean(axis=0) == pytest.approx(truth.mean(axis=0), rel=0.1)
    assert made.model.predict(data.X, 1).mean(axis=0) == pytest.approx(truth.mean(axis=0), rel=0.1)


def test_costs_that_nobody_paid() -> None:
    data, _ = experiment(300, 3)
    data = replace(data, cost=np.zeros(300))
    fold = draw_folds(data.cluster, data.arm, 3, np.random.default_rng(4))
    made = fit_costs(data, Binned(data.X, [], 1), fold, SETTINGS)
    assert made.oof.tolist() == np.zeros((300, 2)).tolist()
    assert made.ratio.tolist() == [1.0, 1.0]


def test_a_contact_that_costs_the_same_for_all() -> None:
    data, _ = experiment(300, 3)
    data = replace(data, cost=np.where(data.arm > 0, 0.07, 0.0))
    fold = draw_folds(data.cluster, data.arm, 3, np.random.default_rng(4))
    made = fit_costs(data, Binned(data.X, [], 1), fold, SETTINGS)
    np.testing.assert_allclose(made.oof, 0.07, rtol=1e-12)
    assert np.array_equal(
        calibrate_costs(data, made.oof, np.random.default_rng(5).standard_normal((300, 2))),
        unchanged(2),
    ), "a prediction that never varies can't be corrected by itself"


def test_a_smooth_cost_model_passes_the_budget_until_it_is_calibrated() -> None:
    """Whoever is changed redeems. A cost model that knows no differences is too low exactly for
    those whom the policy picks by their effect."""
    rng = np.random.default_rng(6)
    n = 40_000
    effect = rng.gamma(2.0, 1.0, (n, 1)) * np.array([1.0, 1.5])
    truth = 0.3 + 0.4 * effect + rng.uniform(0, 0.2, (n, 1))  # expected cost
    assignment = np.tile(SHARES, (n, 1))
    arm = draw_arms(assignment, rng)
    own = np.column_stack([np.zeros(n), truth])[np.arange(n), arm]
    paid = own * rng.gamma(2.0, 0.5, n)  # noise of mean 1
    X = np.zeros((n, 1), dtype=np.float32)
    data = training_set(X, arm, np.zeros(n), assignment, cost=paid)
    # Four fifths of the differences between customers are smoothed away; the mean is right.
    smooth = truth.mean(axis=0) + 0.2 * (truth - truth.mean(axis=0))

    def spend(cost: np.ndarray) -> float:
        """True cost of the policy over the budget that it keeps by its own costs."""
        allowed = np.ones((n, 2), dtype=bool)
        policy = model_policy(Predictions(effect, cost, np.zeros(n), allowed), 0.35, 0.0)
        assert (policy * cost).sum(axis=1).mean() == pytest.approx(0.35, rel=1e-3)
        return float((policy * truth).sum(axis=1).mean() / 0.35)

    calibration = calibrate_costs(data, smooth, effect)
    assert spend(smooth) > 1.15
    assert spend(calibrated(calibration, smooth, effect)) == pytest.approx(1.0, abs=0.03)


def test_calibration_finds_the_bent_line_that_made_the_costs() -> None:
    """A line below an effect of 0; above it another slope of the effect and of the cost."""
    rng = np.random.default_rng(7)
    data, _ = experiment(3000, 8)
    cost, cate = rng.uniform(1, 3, (3000, 2)), rng.standard_normal((3000, 2))
    lines = np.array([[0.5, 0.8, 0.3, 0.4, 0.1], [2.0, 1.5, 0.0, -0.2, 0.5]])
    a, c, t, up, steeper = lines.T
    true = a + c * cost + t * cate + np.where(cate > 0, up * cate + steeper * cate * cost, 0.0)
    paid = np.column_stack([np.zeros(3000), true])[np.arange(3000), data.arm]
    made = calibrate_costs(replace(data, cost=paid), cost, cate)
    np.testing.assert_allclose(made, lines, atol=1e-9)
    np.testing.assert_allclose(calibrated(made, cost, cate), true, atol=1e-9)


def test_no_bend_with_hardly_anybody_on_one_side_and_costs_alone_without_effects() -> None:
    data, truth = experiment(3000, 8)
    cate = np.abs(np.random.default_rng(13).standard_normal((3000, 2)))
    straight = calibrate_costs(data, truth, cate)
    assert (straight[:, 3:] == 0).all()
    assert (straight[:, 1:3] != 0).all()
    cate[:80] *= -1  # fewer than 100 of either arm
    assert (calibrate_costs(data, truth, cate)[:, 3:] == 0).all()
    same = calibrate_costs(data, truth, np.full((3000, 2), 0.3))
    assert (same[:, 2:] == 0).all()
    assert same[:, 1] == pytest.approx([1.0, 1.0], abs=0.2), "the costs are the true ones"


@pytest.mark.parametrize("floor", [0.0, 0.5, 2.0])
def test_calibration_keeps_the_total_that_was_paid_whatever_the_floor(floor: float) -> None:
    """Cutting costs off at the contact raises them; the intercept takes it back."""
    rng = np.random.default_rng(9)
    data, truth = experiment(3000, 10)
    least = np.full(2, floor)
    # Costs so spread that many fall below the floor.
    data = replace(data, cost=np.where(data.arm > 0, np.maximum(data.cost, floor), 0.0))
    cost, cate = truth * rng.normal(1, 2, (3000, 1)), rng.standard_normal((3000, 2))
    made = np.maximum(calibrated(calibrate_costs(data, cost, cate, least), cost, cate), least)
    for k in (1, 2):
        rows = data.arm == k
        assert made[rows, k - 1].sum() == pytest.approx(data.cost[rows].sum(), rel=1e-9)


def test_a_floor_above_all_that_was_paid_is_no_error() -> None:
    data, truth = experiment(3000, 10)
    cate = np.random.default_rng(9).standard_normal((3000, 2))
    high = np.full(2, 100.0)
    np.testing.assert_array_equal(
        calibrate_costs(data, truth, cate, high)[:, 1:], calibrate_costs(data, truth, cate)[:, 1:]
    )


def test_few_rows_are_left_as_they_are_and_costs_never_fall_below_zero() -> None:
    data, truth = experiment(200, 11)  # some 60 rows an arm
    made = calibrate_costs(data, truth, np.random.default_rng(12).standard_normal((200, 2)))
    assert np.array_equal(made, unchanged(2))
    assert np.array_equal(calibrated(made, truth, truth), truth)
    # Three terms, as bundles of earlier trainings have them.
    low = calibrated(np.array([[-5.0, 1.0, 0.0]]), np.array([[1.0], [7.0]]), np.zeros((2, 1)))
    assert low.tolist() == [[0.0], [2.0]]


CHAIN = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
FORK = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)


@pytest.mark.parametrize("dearer", [CHAIN, FORK, CHAIN.T, FORK.T])
def test_costs_in_order_keep_it_and_come_nearer_to_what_is_in_it(dearer: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    k = len(dearer)
    # The truth keeps the order: each arm is at least as dear as those that it is dearer than.
    truth = rng.uniform(0, 5, (2_000, k))
    for _ in range(k):
        for i, j in np.argwhere(dearer):
            truth[:, i] = np.maximum(truth[:, i], truth[:, j])
    told = np.maximum(truth + rng.normal(0, 2.0, truth.shape), 0.0)
    made = in_order(told, dearer)
    wrong = [(told[:, i] < told[:, j]).mean() for i, j in np.argwhere(dearer)]
    assert min(wrong) > 0.05, "otherwise nothing is tested"
    assert all((made[:, i] >= made[:, j]).all() for i, j in np.argwhere(dearer))
    error, before = np.abs(made - truth).max(axis=1), np.abs(told - truth).max(axis=1)
    assert (error <= before + 1e-12).all()
    assert ((made - truth) ** 2).mean() < 0.95 * ((told - truth) ** 2).mean()
    # What is in order stays to the last bit, and so does an arm that has no place in it.
    np.testing.assert_array_equal(in_order(truth, dearer), truth)
    np.testing.assert_array_equal(in_order(made, dearer), made)
    free = ~(dearer.any(axis=0) | dearer.any(axis=1))
    np.testing.assert_array_equal(made[:, free], told[:, free])
    np.testing.assert_allclose(in_order(2 * told, dearer), 2 * made, rtol=1e-15)


def test_two_costs_the_wrong_way_round_meet_in_the_middle() -> None:
    pair = np.array([[False, True], [False, False]])  # the first arm is the dearer
    made = in_order(np.array([[1.0, 3.0], [3.0, 1.0]]), pair)
    assert made.tolist() == [[2.0, 2.0], [3.0, 1.0]]
    nothing = np.zeros((2, 2), dtype=bool)
    assert in_order(made, nothing) is made


def test_with_few_rows_a_coupon_of_six_is_no_cheaper_than_one_of_five() -> None:
    """Two coupons that anybody redeems alike, learned each from some 400 rows: for many customers
    the models have them the wrong way round; in order they are nearer to the truth."""
    data, truth = experiment(1_200, 21)
    truth = truth * np.array([1.0, 0.6])  # off 5 and off 6
    data = replace(data, cost=np.where(data.arm == 2, 0.6 * data.cost, data.cost))
    fold = draw_folds(data.cluster, data.arm, 3, np.random.default_rng(22))
    told = fit_costs(data, Binned(data.X, [], 1), fold, SETTINGS).model.predict(data.X, 1)
    dearer = np.array([[False, False], [True, False]])
    made = in_order(told, dearer)
    assert (told[:, 1] < told[:, 0]).mean() > 0.1
    assert (made[:, 1] >= made[:, 0]).all()
    assert ((made - truth) ** 2).mean() < ((told - truth) ** 2).mean()
    np.testing.assert_allclose(made.sum(axis=1), told.sum(axis=1), rtol=1e-12)
    # Little of one coupon's total goes over to the other.
    assert made.mean(axis=0) == pytest.approx(told.mean(axis=0), rel=0.05)
