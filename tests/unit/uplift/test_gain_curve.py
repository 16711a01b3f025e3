"""Gain over cost: the Qini curve as a special case, an LP solver as the oracle, analytic areas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.evaluation import Predictions, single_arm
from uplift.gain_curve import GainCurve, gain_curve, ranked_curve
from uplift.inference import half_sample_errors
from uplift.ranking import rank_rows
from uplift.scores import Estimate, ScoreMatrix


class Instance:
    """n rows, K arms: predictions, measured gain and measured cost, clusters of unequal size."""

    def __init__(self, n: int = 40, arms: int = 3, seed: int = 0, levels: int | None = None):
        rng = np.random.default_rng(seed)
        self.reward = rng.normal(0.4, 1.0, (n, arms))
        self.cost = rng.uniform(0.2, 2.0, (n, arms))
        if levels is not None:
            self.reward = rng.integers(-1, levels, (n, arms)).astype(float)
            self.cost = rng.integers(1, levels, (n, arms)).astype(float)
        cluster = rng.integers(0, n // 2, n)
        truth = np.column_stack([np.zeros(n), self.reward])
        self.scores = ScoreMatrix(truth + rng.standard_normal((n, arms + 1)), cluster)
        paid = np.column_stack([np.zeros(n), self.cost])
        paid[:, 1:] += rng.standard_normal((n, arms)) * 0.5
        self.spend = ScoreMatrix(paid, cluster)

    def curve(self) -> GainCurve:
        return gain_curve(self.scores, self.reward, self.cost, spend=self.spend)

    def rows(self, pick: np.ndarray) -> Instance:
        made = Instance.__new__(Instance)
        made.reward, made.cost = self.reward[pick], self.cost[pick]
        made.scores = ScoreMatrix(self.scores.gamma[pick], self.scores.cluster[pick])
        made.spend = ScoreMatrix(self.spend.gamma[pick], self.scores.cluster[pick])
        return made


@pytest.mark.parametrize("distinct", [3, 30, 10**6])
def test_one_arm_of_cost_one_is_the_qini_curve(distinct: int) -> None:
    rng = np.random.default_rng(1)
    n = 500
    score = rng.integers(1, distinct, n).astype(float)
    gamma = np.column_stack([np.zeros(n), score / distinct + rng.standard_normal(n)])
    scores = ScoreMatrix(gamma, rng.integers(0, 200, n))
    curve = gain_curve(scores, score[:, None], np.ones((n, 1)))
    ranking = rank_rows(score, scores.contrast(1), scores.cluster)
    for b in (0.004, 0.1, 0.333, 0.8, 1.0):
        ours, theirs = curve.at(b), ranking.qini_at(b)
        assert ours.value == pytest.approx(theirs.value, abs=1e-12)
        np.testing.assert_allclose(ours.psi, theirs.psi, rtol=0, atol=1e-12)
        assert ours.estimate.se == pytest.approx(theirs.estimate.se, abs=1e-13)
        assert curve.spend_at(b).value == pytest.approx(b, abs=1e-12)
        assert scores.gain(curve.policy_at(b)).value == pytest.approx(theirs.value, abs=1e-12)
    # The area between the curve and its straight line.
    ate = scores.effect(1).value
    assert curve.area(1.0) - ate / 2 == pytest.approx(ranking.qini().value, abs=1e-12)


def solved(reward: FloatArray, cost: FloatArray, budget: float) -> FloatArray:
    """(n, K) the optimum of the linear relaxation, by HiGHS."""
    n, arms = reward.shape
    one_each = np.kron(np.eye(n), np.ones(arms))
    made = linprog(
        -reward.ravel(),
        A_ub=np.vstack([one_each, cost.ravel()]),
        b_ub=np.append(np.ones(n), budget * n),
        bounds=(0, 1),
        method="highs",
    )
    return made.x.reshape(n, arms)


@pytest.mark.parametrize("seed", range(8))
def test_policy_and_gain_are_those_of_the_linear_programme(seed: int) -> None:
    made = Instance(seed=seed)
    curve = made.curve()
    contrast = made.scores.gamma[:, 1:] - made.scores.gamma[:, :1]
    paid = made.spend.gamma[:, 1:] - made.spend.gamma[:, :1]
    for share in (0.0, 0.05, 0.31, 0.7, 1.0, 1.5):
        budget = share * curve.full_budget
        policy = solved(made.reward, made.cost, budget)
        np.testing.assert_allclose(curve.policy_at(budget), policy, atol=1e-7)
        gain, spend = (policy * contrast).sum(axis=1), (policy * paid).sum(axis=1)
        assert curve.at(budget).value == pytest.approx(gain.mean(), abs=1e-7)
        assert curve.spend_at(budget).value == pytest.approx(spend.mean(), abs=1e-7)
        if share < 1:
            window = np.clip(
                [budget - 0.05 * curve.full_budget, budget + 0.05 * curve.full_budget],
                0,
                curve.full_budget,
            )
            low, high = (
                float((solved(made.reward, made.cost, b) * contrast).sum(axis=1).mean())
                for b in window
            )
            margin = (high - low) / (window[1] - window[0])
            cost = (policy * made.cost).sum(axis=1)
            psi = gain - gain.mean() - margin * (cost - budget)
        else:
            psi = gain - gain.mean()
        np.testing.assert_allclose(curve.at(budget).psi, psi, atol=1e-5)


def test_areas_over_spend() -> None:
    """Effect per cost is a midpoint grid of (0, 1); half of the rows cost 2. At the share q of
    the ranks the spend is 1.5 q and the gain 1.5 (q - q^2 / 2): the area is 2.25 (1/2 - 1/6)."""
    n = 100_000
    per_cost = np.repeat((np.arange(n // 2) + 0.5) / (n // 2), 2)
    cost = np.tile([1.0, 2.0], n // 2)
    gamma = np.column_stack([np.zeros(n), per_cost * cost])
    curve = gain_curve(ScoreMatrix(gamma, np.arange(n)), gamma[:, 1:], cost[:, None])
    assert curve.full_budget == pytest.approx(1.5, abs=1e-9)
    assert curve.area(1.5) == pytest.approx(0.75, abs=1e-6)
    assert curve.area(0.75) == pytest.approx(2.25 * (1 / 8 - 1 / 48), abs=1e-6)
    # Beyond the end nothing more is bought.
    assert curve.area(2.5) == pytest.approx(0.75 + 0.75, abs=1e-5)
    assert curve.at(0.75).value == pytest.approx(1.5 * (0.5 - 0.125), abs=1e-6)
    assert curve.at(99.0).value == pytest.approx(0.75, abs=1e-6)


def test_two_arms_by_hand() -> None:
    """Row 0 goes to arm 1 (4 for 1), row 1 to arm 1 (3 for 2), row 0 on to arm 2 (2 for 2)."""
    reward, cost = np.array([[4.0, 6.0], [3.0, 0.0]]), np.array([[1.0, 3.0], [2.0, 9.0]])
    scores = ScoreMatrix(np.array([[1.0, 11.0, 21.0], [0.0, 100.0, 0.0]]), np.arange(2))
    curve = gain_curve(scores, reward, cost)
    assert curve.budgets.tolist() == [0.0, 0.5, 1.5, 2.5]
    assert curve.gains.tolist() == [0.0, 5.0, 55.0, 60.0]
    assert curve.policy_at(1.0).tolist() == [[1.0, 0.0], [0.5, 0.0]]
    assert curve.policy_at(2.0).tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert curve.policy_at(2.5).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert [row["budget"] for row in curve.curve(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [row["value"] for row in curve.curve(6)] == [0.0, 5.0, 30.0, 55.0, 57.5, 60.0]


@pytest.mark.parametrize("levels", [None, 4])
def test_the_curve_is_its_points(levels: int | None) -> None:
    made = Instance(n=300, seed=16, levels=levels)
    made.cost[:30, 0] = 0.0
    curve = made.curve()
    rows = curve.curve(13)
    assert len(rows) == 13
    for row in rows:
        exact = curve.at(row["budget"]).estimate
        assert row["value"] == pytest.approx(exact.value, abs=1e-12)
        assert row["se"] == pytest.approx(exact.se, rel=1e-9)
        assert row["spend"] == pytest.approx(curve.spend_at(row["budget"]).value, abs=1e-12)


def test_what_is_free_is_given_first_and_what_loses_never() -> None:
    reward, cost = np.array([[2.0, 3.0], [-1.0, -2.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    scores = ScoreMatrix(np.array([[0.0, 5.0, 9.0], [0.0, 7.0, 7.0]]), np.arange(2))
    curve = gain_curve(scores, reward, cost)
    assert (curve.gains.tolist(), curve.budgets.tolist()) == ([2.5, 4.5], [0.0, 0.5])
    assert curve.policy_at(0.25).tolist() == [[0.5, 0.5], [0.0, 0.0]]
    nothing = gain_curve(scores, -np.ones((2, 2)), cost)
    assert nothing.full_budget == 0.0
    assert nothing.at(3.0).estimate == Estimate(0.0, 0.0)
    assert nothing.area(3.0) == 0.0
    assert [row["value"] for row in nothing.curve(3)] == [0.0] * 3
    assert nothing.policy_at(1.0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("levels", [None, 4])
def test_row_order_changes_no_bit(levels: int | None) -> None:
    made = Instance(n=300, seed=3, levels=levels)
    order = np.random.default_rng(4).permutation(300)
    one, other = made.curve(), made.rows(order).curve()
    for budget in (0.0, 0.2, 0.61, 9.0):
        assert one.at(budget).estimate == other.at(budget).estimate
        assert one.at_spend(budget).estimate == other.at_spend(budget).estimate
        assert one.area(budget) == other.area(budget)
        np.testing.assert_array_equal(one.policy_at(budget)[order], other.policy_at(budget))


@pytest.mark.parametrize("levels", [None, 5])
def test_influence_values_agree_with_half_samples(levels: int | None) -> None:
    made = Instance(n=3000, seed=5, levels=levels)
    curve = made.curve()
    budgets = np.array([0.15, 0.4, 0.7]) * curve.full_budget
    half = half_sample_errors(
        lambda keep: curve.subset(keep).value(budgets),
        made.scores.cluster,
        np.random.default_rng(6),
        draws=400,
    )
    exact = [curve.at(b).estimate.se for b in budgets]
    np.testing.assert_allclose(half, exact, rtol=0.15)


def test_the_path_of_a_subset_is_solved_anew() -> None:
    made = Instance(n=300, seed=7, levels=4)
    keep = np.random.default_rng(8).random(300) < 0.5
    some, direct = made.curve().subset(keep), made.rows(np.flatnonzero(keep)).curve()
    assert some.full_budget == direct.full_budget
    for budget in (0.1, 0.5):
        assert some.at(budget).value == pytest.approx(direct.at(budget).value, abs=1e-12)
        np.testing.assert_allclose(some.policy_at(budget), direct.policy_at(budget), atol=1e-12)


def test_equal_realised_spend() -> None:
    made = Instance(n=2000, seed=9)
    model = made.curve()
    target = 0.3 * model.full_budget
    found = model.at_spend(target)
    # Where the measured spend is the target, whatever was predicted.
    at = np.interp(target, model.spends, model.budgets)
    assert model.spend_at(float(at)).value == pytest.approx(target, abs=1e-9)
    assert found.value == pytest.approx(model.at(float(at)).value, abs=1e-9)
    rival = ranked_curve(made.scores, np.zeros(2000), 1, made.cost, spend=made.spend)
    difference = found - rival.at_spend(target)
    assert difference.value == pytest.approx(found.value - rival.at_spend(target).value)
    half = half_sample_errors(
        lambda keep: (
            (model.subset(keep).at_spend(target) - rival.subset(keep).at_spend(target)).value
        ),
        made.scores.cluster,
        np.random.default_rng(10),
    )
    assert float(half) == pytest.approx(difference.estimate.se, rel=0.2)
    itself = (found - model.at_spend(target)).estimate
    assert (itself.value, itself.se) == (0.0, 0.0)


def test_without_paid_costs_the_predicted_ones_count() -> None:
    made = Instance(n=400, seed=11)
    curve = gain_curve(made.scores, made.reward, made.cost)
    np.testing.assert_allclose(curve.spends, curve.budgets, atol=1e-12)
    one, other = curve.at(0.3), curve.at_spend(0.3)
    assert one.value == pytest.approx(other.value, abs=1e-12)
    np.testing.assert_allclose(one.psi, other.psi, atol=1e-9)
    # A spend that the path never reaches is its end.
    assert curve.at_spend(99.0).estimate == curve.at(99.0).estimate


@pytest.mark.parametrize("levels", [6, 10**6])
def test_a_ranked_path_is_the_single_coupon_policy(levels: int) -> None:
    made = Instance(n=300, seed=12)
    rng = np.random.default_rng(13)
    rank = rng.integers(0, levels, 300).astype(float)
    made.cost[rng.random(300) < 0.1, 1] = 0.0
    allowed = rng.random((300, 3)) < 0.8
    curve = ranked_curve(made.scores, rank, 2, made.cost, spend=made.spend, eligible=allowed)
    p = Predictions(made.reward, made.cost, rank, allowed)
    for budget in (0.05, 0.3, 0.6, 5.0):
        policy = single_arm(rank, 2, p, budget)
        np.testing.assert_allclose(curve.policy_at(budget), policy, atol=1e-12)
        assert curve.at(budget).value == pytest.approx(made.scores.gain(policy).value, abs=1e-12)
        spent = made.spend.gain(policy).value
        assert curve.spend_at(budget).value == pytest.approx(spent, abs=1e-12)


def test_a_ranked_path_with_an_arm_of_each_rows_own() -> None:
    """Gain over cost as the ranking is treated from the top: the running means of both."""
    made = Instance(n=200, seed=17)
    rng = np.random.default_rng(18)
    rank, arm = rng.standard_normal(200), rng.integers(0, 4, 200)
    curve = ranked_curve(made.scores, rank, arm, made.cost)
    rows = np.argsort(-rank)
    rows = rows[arm[rows] > 0]
    paid, brought = made.cost[rows, arm[rows] - 1], made.scores.contrast(arm)[rows]
    np.testing.assert_allclose(curve.budgets[1:], np.cumsum(paid) / 200, atol=1e-12)
    np.testing.assert_allclose(curve.gains[1:], np.cumsum(brought) / 200, atol=1e-12)


def test_the_error_of_an_area_is_its_spread_over_experiments() -> None:
    """One arm, cost 1, uniform effect per cost: area to .5 is 1/8 - 1/48; 300 experiments."""
    rng = np.random.default_rng(19)

    def experiment() -> GainCurve:
        tau = rng.uniform(0, 1, 400)
        gamma = np.column_stack([np.zeros(400), tau + rng.standard_normal(400)])
        return gain_curve(ScoreMatrix(gamma, np.arange(400)), tau[:, None], np.ones((400, 1)))

    areas = np.array([experiment().area(0.5) for _ in range(300)])
    spread = areas.std(ddof=1)
    assert abs(areas.mean() - (1 / 8 - 1 / 48)) < 3 * spread / np.sqrt(300)
    found = [experiment().area_estimate(0.5, rng).se for _ in range(4)]
    assert np.mean(found) == pytest.approx(spread, rel=0.15)


def test_thresholds_and_eligibility_bound_the_path() -> None:
    made = Instance(n=200, seed=14)
    allowed = np.random.default_rng(15).random((200, 3)) < 0.5
    curve = gain_curve(made.scores, made.reward, made.cost, min_profit=0.5, eligible=allowed)
    policy = curve.policy_at(99.0)
    assert (policy[~allowed] == 0).all()
    assert (policy[made.reward < 0.5] == 0).all()
    assert set(np.unique(policy)) == {0.0, 1.0}


def test_refusals() -> None:
    made = Instance()
    with pytest.raises(DesignError, match="one number of rows, found 39 and 40"):
        gain_curve(made.rows(np.arange(39)).scores, made.reward, made.cost)
    with pytest.raises(DesignError, match="reward: expected finite numbers, found nan"):
        gain_curve(made.scores, np.where(made.reward > 1, np.nan, 1.0), made.cost)
    with pytest.raises(DesignError, match="rank holds 40 values that are no finite numbers"):
        ranked_curve(made.scores, np.full(40, np.nan), 1, made.cost)
    for budget in (-1.0, np.nan, np.inf):
        with pytest.raises(DesignError, match="budget: expected a finite number >= 0 per row"):
            made.curve().at(budget)
