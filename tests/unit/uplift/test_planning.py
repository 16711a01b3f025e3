"""The plan of a budget: known truth, coverage, and that no promise of the models is in it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from uplift.allocation import allocate
from uplift.errors import DesignError
from uplift.evaluation import (
    BEST_RANDOM,
    BEST_RESPONSE,
    RANDOM,
    Predictions,
    Scored,
    random_policy,
    single_arm,
)
from uplift.gain_curve import gain_curve
from uplift.planning import SHARES, BudgetPlan, budget_plan, full_cost, recommended_budget
from uplift.scores import ScoreMatrix

ARMS = ("a", "b", "c")


class World:
    """n rows: true effects and costs of three arms, noisy predictions, and unbiased scores."""

    def __init__(self, n: int, rng: np.random.Generator, effect: float = 0.4, skill: float = 0.7):
        shape = (n, len(ARMS))
        self.truth = effect * (rng.normal(0.3, 1.0, shape) + rng.normal(0, 0.5, (n, 1)))
        reward = skill * self.truth + rng.normal(0, 0.4, shape)
        cost = rng.uniform(0.3, 1.5, shape)
        response = rng.uniform(0, 1, n)
        allowed = rng.random(shape) < 0.9
        self.p = Predictions(reward, cost, response, allowed)
        paid = np.column_stack([np.zeros(n), cost + rng.normal(0, 0.2, shape)])
        noise = rng.normal(0, 1.5, (n, len(ARMS) + 1))
        gamma = np.column_stack([np.zeros(n), self.truth]) + noise
        cluster = np.arange(n)
        self.scored = Scored(ScoreMatrix(gamma, cluster), ScoreMatrix(paid, cluster))

    def plan(self, **more: Any) -> BudgetPlan:
        given = {"rivals": {BEST_RANDOM: 1, BEST_RESPONSE: 2}} | more
        return budget_plan("t", ARMS, self.scored, self.p, np.random.default_rng(0), **given)

    def true_gain(self, budget: float) -> float:
        """Per row, of the policy that spends this budget per row on the predictions."""
        n = len(self.truth)
        made = allocate(self.p.reward, self.p.cost, budget=budget * n, eligible=self.p.allowed)
        rows = np.flatnonzero(made.choice > 0)
        return float(self.truth[rows, made.choice[rows] - 1].sum() / n)


@pytest.fixture(scope="module")
def world() -> World:
    return World(1_500, np.random.default_rng(3))


def test_every_point_is_the_policy_at_that_budget(world: World) -> None:
    plan = world.plan()
    assert [p.budget / plan.full_budget for p in plan.points] == pytest.approx(list(SHARES))
    assert (plan.points[0].gain.value, plan.points[0].mix) == (0.0, (0.0, 0.0, 0.0))
    n = len(world.truth)
    for point in (plan.points[3], plan.points[-1]):
        made = allocate(world.p.reward, world.p.cost, budget=point.budget * n * (1 + 1e-12),
                        eligible=world.p.allowed)  # fmt: skip
        policy = np.eye(4)[made.choice][:, 1:]
        # The path divides the marginal customer.
        assert point.gain.value == pytest.approx(world.scored.gain.gain(policy).value, abs=5e-3)
        assert sum(point.mix) == pytest.approx(policy.sum() / n, abs=1 / n)
        assert point.spend == pytest.approx(world.scored.spend.gain(policy).value, abs=5e-3)
    whole = np.where(world.p.allowed, world.p.reward, -1.0)
    best = np.where(whole.max(axis=1) > 0, whole.argmax(axis=1) + 1, 0)
    everything = world.scored.gain.gain(np.eye(4)[best][:, 1:])
    assert plan.points[-1].gain.value == pytest.approx(everything.value, abs=1e-12)
    assert plan.points[-1].gain.se == pytest.approx(everything.se, rel=1e-9)
    assert plan.full_budget == pytest.approx(full_cost(world.p))


def test_rivals_are_measured_at_the_same_predicted_cost(world: World) -> None:
    plan = world.plan()
    point = plan.points[4]
    random = random_policy(world.p, point.budget)
    assert point.rivals[RANDOM].value == pytest.approx(world.scored.gain.gain(random).value)
    ranked = single_arm(world.p.response, 2, world.p, point.budget)
    held = world.scored.gain.gain(ranked)
    assert point.rivals[BEST_RESPONSE].value == pytest.approx(held.value, abs=1e-9)
    assert plan.rival_arms == {BEST_RANDOM: "a", BEST_RESPONSE: "b"}
    # Beyond what sending everybody costs, a rival is at its end.
    everybody = random_policy(world.p, None)
    if plan.full_budget > float((everybody * world.p.cost).sum(axis=1).mean()):
        assert plan.points[-1].rivals[RANDOM].value == world.scored.gain.gain(everybody).value


def test_how_far_the_policy_is_ahead_is_at_equal_realised_cost(world: World) -> None:
    """A rival whose coupon turns out to cost half as much again is charged for it."""
    plan, budget = world.plan(), 0.1
    point = min(plan.points, key=lambda p: abs(p.budget - budget))
    n, reach = len(world.truth), 0.05 * plan.full_budget
    values = [
        allocate(world.p.reward, world.p.cost, budget=b * n, eligible=world.p.allowed).value / n
        for b in (point.budget - reach, point.budget + reach)
    ]
    price = (values[1] - values[0]) / (2 * reach)
    assert price > 0.2
    ranked = single_arm(world.p.response, 2, world.p, point.budget)
    spends = world.scored.spend.gain(ranked).value
    by_hand = point.gain.value - point.rivals[BEST_RESPONSE].value - price * (point.spend - spends)
    assert point.ahead[BEST_RESPONSE].value == pytest.approx(by_hand, abs=1e-4)
    random = random_policy(world.p, point.budget)
    spends = world.scored.spend.gain(random).value
    by_hand = point.gain.value - point.rivals[RANDOM].value - price * (point.spend - spends)
    assert point.ahead[RANDOM].value == pytest.approx(by_hand, abs=1e-4)
    gamma = world.scored.spend.gamma * np.array([1.0, 1.0, 1.5, 1.0])
    dear = Scored(world.scored.gain, ScoreMatrix(gamma, world.scored.gain.cluster))
    rivals = {BEST_RESPONSE: 2}
    again = budget_plan("t", ARMS, dear, world.p, np.random.default_rng(0), rivals=rivals)
    charged = next(p for p in again.points if p.budget == point.budget)
    assert charged.rivals[BEST_RESPONSE].value == point.rivals[BEST_RESPONSE].value
    more = 0.5 * (world.scored.spend.gamma[:, 2] @ ranked[:, 1]) / n
    less = charged.spend - point.spend  # the policy's own share of the dear coupon
    assert charged.ahead[BEST_RESPONSE].value == pytest.approx(
        point.ahead[BEST_RESPONSE].value + price * (more - less), abs=1e-4
    )
    assert more > less + 0.02


def test_the_interval_holds_the_true_gain_and_is_no_wider_than_it_must_be() -> None:
    """At 5, 25, 50 and 100% of the full budget, in 240 samples of 500 rows; the truth is that of
    the rule in the population, by 200,000 rows."""
    rng = np.random.default_rng(11)
    big = World(200_000, rng)
    shares = (0.05, 0.25, 0.5, 1.0)
    truth = {s: big.true_gain(s * full_cost(big.p)) for s in shares}
    price = {s: s * full_cost(big.p) for s in shares}
    held = dict.fromkeys(shares, 0)
    values: dict[float, list[float]] = {s: [] for s in shares}
    errors: dict[float, list[float]] = {s: [] for s in shares}
    runs = 240
    for _ in range(runs):
        world = World(500, rng)
        curve = gain_curve(world.scored.gain, world.p.reward, world.p.cost,
                           eligible=world.p.allowed)  # fmt: skip
        for s in shares:
            found = curve.at(min(price[s], curve.full_budget)).estimate
            held[s] += found.lo <= truth[s] <= found.hi
            values[s].append(found.value)
            errors[s].append(found.se)
    for s in shares:
        assert held[s] / runs >= 0.90
        assert np.mean(errors[s]) <= 1.25 * np.std(values[s], ddof=1)


def test_what_the_models_promise_is_too_high_and_stands_nowhere(world: World) -> None:
    """The predictions of the arms that they pick add up to far more than those arms bring."""
    plan = world.plan()
    n = len(world.truth)
    for point in (plan.points[6], plan.points[-1]):
        made = allocate(world.p.reward, world.p.cost, budget=point.budget * n,
                        eligible=world.p.allowed)  # fmt: skip
        promised, true = made.value / n, world.true_gain(point.budget)
        assert promised > 1.3 * true
        assert point.gain.lo <= true <= point.gain.hi
    assert promised > plan.points[-1].gain.hi
    text = json.dumps(plan.to_json())
    assert "promise" not in text
    assert "predicted" not in text


def test_the_gain_of_the_recommended_budget_is_not_the_greatest_of_noise() -> None:
    """Nothing has an effect: the greatest point of the curve is above 0, its honest gain is not."""
    rng = np.random.default_rng(5)
    greatest, honest = [], []
    for _ in range(60):
        world = World(200, rng, effect=0.0)
        plan = world.plan(rivals={})
        curve = gain_curve(world.scored.gain, world.p.reward, world.p.cost,
                           eligible=world.p.allowed)  # fmt: skip
        greatest.append(curve.at(recommended_budget(curve)).value)
        honest.append(plan.recommended_gain.value)
    error = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest)) < 3 * error
    assert np.mean(greatest) > 5 * error


def test_the_recommended_budget_stops_where_customers_cost_more_than_they_bring() -> None:
    """Half of the rows bring 1, half lose 1; the models rank them well and hold all for gains."""
    n = 4_000
    rng = np.random.default_rng(2)
    good = np.arange(n) % 2 == 0
    reward = np.where(good, 2.0, 1.0)[:, None] + rng.uniform(0, 0.5, (n, 1))
    gamma = np.column_stack([np.zeros(n), np.where(good, 1.0, -1.0)])
    gamma[:, 1] += rng.normal(0, 0.5, n)
    scored = Scored(ScoreMatrix(gamma, np.arange(n)), ScoreMatrix(np.zeros((n, 2)), np.arange(n)))
    p = Predictions(reward, np.ones((n, 1)), np.zeros(n), np.ones((n, 1), dtype=bool))
    plan = budget_plan("t", ("a",), scored, p, rng)
    assert plan.recommended == pytest.approx(0.5, abs=0.02)
    assert plan.recommended_gain.value == pytest.approx(0.5, abs=0.05)
    last = {round(q.budget, 2): q.last_return for q in plan.points}
    assert last[0.3].value == pytest.approx(1.0, abs=0.2)
    assert last[0.3].lo > 0
    assert last[0.8].value == pytest.approx(-1.0, abs=0.2)
    assert last[0.8].hi < 0


def test_a_plan_survives_its_plain_form_and_scales(world: World) -> None:
    plan = world.plan()
    assert BudgetPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    many = plan.scaled(10_000)
    assert many.full_budget == pytest.approx(10_000 * plan.full_budget)
    point = many.points[5]
    assert point.gain.lo == pytest.approx(10_000 * plan.points[5].gain.lo)
    assert (point.mix, point.last_return) == (plan.points[5].mix, plan.points[5].last_return)
    assert many.gain_at(point.budget) == point.gain
    between = many.gain_at((many.points[5].budget + many.points[6].budget) / 2)
    assert between.value == pytest.approx((point.gain.value + many.points[6].gain.value) / 2)
    assert many.gain_at(9e9) == many.points[-1].gain


def test_a_policy_that_sends_nothing_has_a_plan_of_nothing(world: World) -> None:
    nobody = np.zeros_like(world.p.allowed)
    p = Predictions(world.p.reward, world.p.cost, world.p.response, nobody)
    plan = budget_plan("none", ARMS, world.scored, p, np.random.default_rng(0))
    assert (plan.full_budget, plan.recommended, len(plan.points)) == (0.0, 0.0, 1)
    assert plan.points[0].gain.value == 0.0
    assert plan.gain_at(100.0).value == 0.0


def test_refuses_to_plan_from_nothing() -> None:
    empty = np.zeros((0, 1))
    scores = ScoreMatrix(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    p = Predictions(empty, empty, np.zeros(0), empty.astype(bool))
    with pytest.raises(DesignError, match="expected held-out rows, found none"):
        budget_plan("t", ("a",), Scored(scores, scores), p, np.random.default_rng(0))
