"""The allocation against an LP solver, brute force, and identities that need neither."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array

from uplift.allocation import Allocation, allocate, best_arm, of_arm, value_path
from uplift.errors import DesignError


def instance(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Reward, cost, eligible, min_profit, budget; every third on a coarse grid, full of ties."""
    rng = np.random.default_rng(seed)
    n, arms = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    if seed % 3 == 0:
        reward = rng.integers(-2, 6, (n, arms)).astype(float)
        cost = rng.integers(0, 4, (n, arms)).astype(float)
    else:
        reward = rng.normal(0.5, 1.0, (n, arms))
        cost = rng.uniform(0.0, 2.0, (n, arms))
        cost[rng.random((n, arms)) < 0.1] = 0.0
        if seed % 3 == 1:
            cost[:] = cost[:, :1]
    eligible = rng.random((n, arms)) < (1.0 if seed % 2 else 0.8)
    min_profit = float(rng.choice([-1.0, 0.0, 0.3]))
    budget = float(rng.choice([0.0, 0.05, 0.3, 0.7, 2.0]) * cost.max(axis=1).sum())
    return reward, cost, eligible, min_profit, budget


def lp_optimum(reward: np.ndarray, cost: np.ndarray, allowed: np.ndarray, budget: float) -> float:
    n, arms = reward.shape
    variables = np.arange(n * arms)
    one_arm = coo_array((np.ones(n * arms), (variables // arms, variables)), shape=(n, n * arms))
    spend = coo_array(cost.reshape(1, -1))
    solution = linprog(
        -reward.ravel(),
        A_ub=np.vstack([one_arm.toarray(), spend.toarray()]),
        b_ub=np.append(np.ones(n), budget),
        bounds=[(0.0, 1.0 if ok else 0.0) for ok in allowed.ravel()],
        method="highs",
    )
    assert solution.status == 0
    return float(-solution.fun)


def biggest_step(reward: np.ndarray, allowed: np.ndarray) -> float:
    """No step of a hull gains more than the best reward of its customer."""
    return float(np.where(allowed, reward, 0.0).max(initial=0.0))


def check_sums(result: Allocation, reward: np.ndarray, cost: np.ndarray) -> None:
    rows = np.flatnonzero(result.choice)
    assert result.spend == pytest.approx(cost[rows, result.choice[rows] - 1].sum(), abs=1e-12)
    assert result.value == pytest.approx(reward[rows, result.choice[rows] - 1].sum(), abs=1e-12)


@pytest.mark.parametrize("block", range(10))
def test_equals_the_linear_program_to_one_fractional_customer(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        reward, cost, eligible, min_profit, budget = instance(seed)
        allowed = eligible & (reward >= min_profit)
        result = allocate(reward, cost, budget=budget, min_profit=min_profit, eligible=eligible)
        assert result.upper_bound == pytest.approx(
            lp_optimum(reward, cost, allowed, budget), abs=1e-9
        ), seed
        assert result.spend <= budget
        assert 0.0 <= result.gap <= biggest_step(reward, allowed) + 1e-12
        check_sums(result, reward, cost)
        rows = np.flatnonzero(result.choice)
        assert allowed[rows, result.choice[rows] - 1].all()


@pytest.mark.parametrize("seed", range(60))
def test_no_better_choice_exists_within_the_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, arms = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    reward = rng.integers(-2, 8, (n, arms)).astype(float)
    cost = rng.integers(0, 5, (n, arms)).astype(float)
    budget = float(rng.integers(0, 8))
    best = max(
        of_arm(reward, np.array(plan)).sum()
        for plan in itertools.product(range(arms + 1), repeat=n)
        if of_arm(cost, np.array(plan)).sum() <= budget
    )
    result = allocate(reward, cost, budget=budget)
    assert result.value <= best <= result.upper_bound + 1e-12
    assert best - result.value <= result.gap + 1e-12


@pytest.mark.parametrize("seed", range(100))
def test_the_shadow_price_gives_everyone_but_the_marginal_customers_the_same(seed: int) -> None:
    reward, cost, eligible, min_profit, budget = instance(seed)
    result = allocate(reward, cost, budget=budget, min_profit=min_profit, eligible=eligible)
    alone = best_arm(reward, cost, result.shadow_price, min_profit=min_profit, eligible=eligible)
    differ = np.flatnonzero(alone != result.choice)
    lam = result.shadow_price
    net = of_arm(reward, result.choice) - lam * of_arm(cost, result.choice)
    net_alone = of_arm(reward, alone) - lam * of_arm(cost, alone)
    # Where they differ, both arms are worth the same at the price: that is the marginal customer.
    np.testing.assert_allclose(net[differ], net_alone[differ], atol=1e-9)
    if seed % 3 == 2:  # continuous costs and rewards: no two steps tie
        assert len(differ) <= 1


def test_a_large_campaign_agrees_with_the_call_for_one_customer() -> None:
    rng = np.random.default_rng(5)
    reward, cost = rng.normal(0.3, 1.0, (20_000, 4)), rng.uniform(0.1, 2.0, (20_000, 4))
    result = allocate(reward, cost, budget=3_000.0)
    together = best_arm(reward, cost, result.shadow_price)
    one_by_one = [
        int(best_arm(reward[i : i + 1], cost[i : i + 1], result.shadow_price)[0])
        for i in range(200)
    ]
    assert (together != result.choice).sum() <= 1
    assert one_by_one == together[:200].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_customers_changes_nothing(seed: int) -> None:
    reward, cost, eligible, min_profit, budget = instance(seed)
    names = np.random.default_rng(seed).permutation(len(reward))
    plain = allocate(
        reward, cost, budget=budget, min_profit=min_profit, eligible=eligible, tie_order=names
    )
    shuffle = np.random.default_rng(seed + 1).permutation(len(reward))
    moved = allocate(
        reward[shuffle],
        cost[shuffle],
        budget=budget,
        min_profit=min_profit,
        eligible=eligible[shuffle],
        tie_order=names[shuffle],
    )
    np.testing.assert_array_equal(moved.choice, plain.choice[shuffle])
    unnamed = allocate(
        reward[shuffle],
        cost[shuffle],
        budget=budget,
        min_profit=min_profit,
        eligible=eligible[shuffle],
    )
    for other in (moved, unnamed):  # without names, who gets the last of equal steps is open
        assert other.spend == plain.spend
        assert other.value == plain.value
        assert other.shadow_price == plain.shadow_price
        assert other.upper_bound == plain.upper_bound


@pytest.mark.parametrize("seed", range(30))
def test_another_currency_changes_no_choice(seed: int) -> None:
    reward, cost, eligible, min_profit, budget = instance(seed)
    plain = allocate(reward, cost, budget=budget, min_profit=min_profit, eligible=eligible)
    doubled = allocate(
        2 * reward, 2 * cost, budget=2 * budget, min_profit=2 * min_profit, eligible=eligible
    )
    np.testing.assert_array_equal(doubled.choice, plain.choice)
    assert doubled.shadow_price == plain.shadow_price
    assert doubled.value == 2 * plain.value
    assert doubled.upper_bound == 2 * plain.upper_bound


@pytest.mark.parametrize("seed", range(30))
def test_a_larger_budget_brings_no_less_and_is_worth_no_more_at_the_margin(seed: int) -> None:
    reward, cost, eligible, min_profit, _ = instance(seed)
    budgets = np.linspace(0.0, cost.max(axis=1).sum(), 25)
    results = [
        allocate(reward, cost, budget=b, min_profit=min_profit, eligible=eligible) for b in budgets
    ]
    assert (np.diff([r.value for r in results]) >= 0).all()
    assert (np.diff([r.spend for r in results]) >= 0).all()
    assert (np.diff([r.shadow_price for r in results]) <= 0).all()


@pytest.mark.parametrize("seed", range(30))
def test_another_coupon_is_worth_no_less_and_less_eligibility_no_more(seed: int) -> None:
    """Of the linear optimum; of the whole numbers within what its marginal customer brings."""
    reward, cost, eligible, min_profit, budget = instance(seed)
    rng = np.random.default_rng(100 + seed)
    same: dict = {"budget": budget, "min_profit": min_profit}
    plain = allocate(reward, cost, eligible=eligible, **same)
    more = allocate(
        np.column_stack([reward, rng.normal(0.5, 1.0, len(reward))]),
        np.column_stack([cost, rng.uniform(0.0, 2.0, len(reward))]),
        eligible=np.column_stack([eligible, np.ones(len(reward), dtype=bool)]),
        **same,
    )
    less = allocate(reward, cost, eligible=eligible & (rng.random(reward.shape) < 0.7), **same)
    largest = max(biggest_step(reward, eligible), 0.0)
    assert more.upper_bound >= plain.upper_bound - 1e-9
    assert less.upper_bound <= plain.upper_bound + 1e-9
    assert more.value >= plain.value - max(largest, more.gap) - 1e-9
    assert less.value <= plain.value + largest + 1e-9


def test_without_a_limit_everyone_gets_the_most_profitable_arm() -> None:
    rng = np.random.default_rng(2)
    reward, cost = rng.normal(0.0, 1.0, (500, 3)), rng.uniform(0.0, 1.0, (500, 3))
    result = allocate(reward, cost, budget=None)
    expected = np.where(reward.max(axis=1) > 0, reward.argmax(axis=1) + 1, 0)
    np.testing.assert_array_equal(result.choice, expected)
    assert (result.shadow_price, result.gap) == (0.0, 0.0)
    full = allocate(reward, cost, budget=result.spend)
    np.testing.assert_array_equal(full.choice, result.choice)
    assert full.shadow_price == 0.0


def test_a_budget_of_zero_buys_only_what_is_free() -> None:
    reward = np.array([[3.0, 5.0], [2.0, -1.0], [4.0, 4.0]])
    cost = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    result = allocate(reward, cost, budget=0.0)
    assert result.choice.tolist() == [1, 0, 1]
    assert (result.spend, result.value, result.shadow_price) == (0.0, 7.0, 2.0)


def test_by_hand() -> None:
    # Steps: a 4/1, then 2/2; b 3/2. With 3 the first and b's are bought; the next costs 2.
    reward, cost = np.array([[4.0, 6.0], [3.0, 0.0]]), np.array([[1.0, 3.0], [2.0, 9.0]])
    result = allocate(reward, cost, budget=4.0)
    assert result.choice.tolist() == [1, 1]
    assert (result.spend, result.value, result.shadow_price) == (3.0, 7.0, 1.0)
    assert (result.upper_bound, result.gap) == (8.0, 1.0)
    assert allocate(reward, cost, budget=5.0).choice.tolist() == [2, 1]


def test_an_arm_below_the_hull_is_never_bought() -> None:
    # The middle arm lies under the line from nothing to the dear one.
    reward, cost = np.array([[1.0, 4.0]]), np.array([[1.0, 2.0]])
    assert allocate(reward, cost, budget=1.5).choice.tolist() == [0]
    assert allocate(reward, cost, budget=2.0).choice.tolist() == [2]
    # On the line it is no corner either: the step goes straight to the end.
    assert allocate(cost, cost, budget=1.5).choice.tolist() == [0]
    assert allocate(cost, cost, budget=2.0).choice.tolist() == [2]


def test_ties_go_to_the_cheaper_arm_then_to_the_lower_code() -> None:
    reward = np.array([[5.0, 5.0, 5.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    cost = np.array([[3.0, 2.0, 2.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert best_arm(reward, cost, 0.0).tolist() == [2, 2, 0]
    assert allocate(reward, cost, budget=None).choice.tolist() == [2, 2, 0]
    # At a price of 2 the second customer's arm is worth exactly nothing: control is cheaper.
    assert best_arm(reward, cost, 2.0).tolist() == [2, 0, 0]


def test_equal_customers_share_what_is_left_by_their_order() -> None:
    reward, cost = np.full((5, 1), 2.0), np.full((5, 1), 1.0)
    ranks = np.array([4, 0, 3, 1, 2])
    result = allocate(reward, cost, budget=2.5, tie_order=ranks)
    assert result.choice.tolist() == [0, 1, 0, 1, 0]
    assert result.upper_bound == 5.0


def test_of_equally_steep_steps_the_cheapest_comes_first() -> None:
    money = np.array([[4.0], [1.0], [2.0]])
    for turn in range(3):
        rolled = np.roll(money, turn, axis=0)
        result = allocate(rolled, rolled, budget=3.5)
        assert np.roll(result.choice, -turn).tolist() == [0, 1, 1]


def test_a_threshold_leaves_out_arms_below_it_and_keeps_those_on_it() -> None:
    reward, cost = np.array([[1.0, 2.0], [0.4, 0.5]]), np.array([[0.1, 0.2], [0.1, 0.2]])
    assert allocate(reward, cost, budget=None, min_profit=0.5).choice.tolist() == [2, 2]
    assert best_arm(reward, cost, 0.0, min_profit=0.51).tolist() == [2, 0]
    # A threshold below nothing does not make a loss worth taking.
    assert best_arm(-reward, cost, 0.0, min_profit=-9.0).tolist() == [0, 0]


def test_customers_who_are_not_charged_follow_the_same_cut_for_free() -> None:
    rng = np.random.default_rng(11)
    reward, cost = rng.normal(0.5, 1.0, (2_000, 3)), rng.uniform(0.1, 1.0, (2_000, 3))
    charged = rng.random(2_000) < 0.7
    alone = allocate(reward[charged], cost[charged], budget=200.0)
    mixed = allocate(reward, cost, budget=200.0, charged=charged)
    np.testing.assert_array_equal(mixed.choice[charged], alone.choice)
    assert (mixed.spend, mixed.value, mixed.gap) == (alone.spend, alone.value, alone.gap)
    np.testing.assert_array_equal(
        mixed.choice[~charged], best_arm(reward, cost, mixed.shadow_price)[~charged]
    )


def test_spend_keeps_to_the_budget_in_spite_of_rounding() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        cost = rng.choice([0.1, 0.2, 0.3, 0.7], (12, 1))
        budget = round(float(rng.choice([0.3, 0.6, 0.8, 1.1, 1.4])), 1)
        result = allocate(np.ones((12, 1)) * cost, cost, budget=budget)
        assert result.spend <= budget
        assert cost[result.choice > 0].sum() <= budget * (1 + 1e-15)


def test_nobody_and_no_arms_are_answered() -> None:
    empty = allocate(np.zeros((0, 3)), np.zeros((0, 3)), budget=5.0)
    assert (len(empty.choice), empty.spend, empty.upper_bound) == (0, 0.0, 0.0)
    armless = allocate(np.zeros((4, 0)), np.zeros((4, 0)), budget=5.0)
    assert armless.choice.tolist() == [0, 0, 0, 0]
    assert best_arm(np.zeros((4, 0)), np.zeros((4, 0)), 1.0).tolist() == [0, 0, 0, 0]
    lone = allocate(np.array([[2.0]]), np.array([[3.0]]), budget=3.0)
    assert (lone.choice.tolist(), lone.spend) == ([1], 3.0)


def test_the_path_passes_through_the_allocations() -> None:
    reward, cost, eligible, min_profit, _ = instance(7)
    budgets, values = value_path(reward, cost, min_profit=min_profit, eligible=eligible, points=9)
    bounds = [
        allocate(reward, cost, budget=b, min_profit=min_profit, eligible=eligible).upper_bound
        for b in budgets
    ]
    np.testing.assert_allclose(values, bounds, atol=1e-9)
    assert (np.diff(values, 2) <= 1e-9).all()


@pytest.mark.parametrize(
    ("reward", "cost", "more", "message"),
    [
        ([[np.nan]], [[1.0]], {}, "reward: expected finite numbers, found nan for customer row 0"),
        ([[1.0]], [[np.inf]], {}, "cost: expected finite numbers, found inf"),
        ([[1.0]], [[-0.5]], {}, "cost: expected numbers >= 0, found -0.5 for customer row 0"),
        ([[1.0, 2.0]], [[1.0]], {}, r"found \(1, 2\) and \(1, 1\)"),
        ([[1.0]], [[1.0]], {"budget": -1.0}, "budget: expected a number >= 0 or none, found -1"),
        ([[1.0]], [[1.0]], {"budget": np.nan}, "budget: expected a number >= 0"),
        ([[1.0]], [[1.0]], {"min_profit": np.nan}, "min_profit: expected a finite number"),
        ([[1.0]], [[1.0]], {"eligible": [[True, True]]}, "eligible: expected shape"),
        ([[1.0]], [[1.0]], {"charged": [True, True]}, "charged: expected shape"),
        ([[1.0]], [[1.0]], {"tie_order": [1, 2]}, "tie_order: expected shape"),
    ],
)
def test_refuses(reward: list, cost: list, more: dict, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        allocate(np.array(reward), np.array(cost), **{"budget": 1.0, **more})


def test_refuses_a_price_that_is_none() -> None:
    with pytest.raises(DesignError, match="shadow_price: expected a finite number >= 0"):
        best_arm(np.ones((1, 1)), np.ones((1, 1)), -0.1)
    with pytest.raises(DesignError, match="points: expected at least 2"):
        value_path(np.ones((1, 1)), np.ones((1, 1)), points=1)
