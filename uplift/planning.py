"""What a budget brings: planned on held-out rows, not on the models' own promises.

The plan follows the served policy over all budgets (`uplift.gain_curve`): what it gains is measured
by doubly robust scores of rows that no model has seen. The sum of what the models predict for the
customers they pick is too high, since they pick what looks best (optimiser's curse, Smith &
Winkler 2006), and stands nowhere in it. Money is currency per row; `BudgetPlan.scaled` makes it
that of a population.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from uplift.allocation import hull_path
from uplift.data import BoolArray, FloatArray
from uplift.errors import DesignError
from uplift.evaluation import RANDOM, Predictions, Scored, rankings
from uplift.gain_curve import GainCurve, gain_curve, ranked_curve
from uplift.scores import Estimate, Influence, ScoreMatrix

# Key of the plan among a bundle's facts.
PLAN = "plan"
# Shares of the full budget at which a plan is measured.
SHARES = (0.0, 0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 21)))
# Half of the window, as a share of the full budget, in which the return on the last unit is taken.
_REACH = 0.05
_FINE = 201


@dataclass(frozen=True)
class PlanPoint:
    """One budget. `last_return`: incremental profit per currency at the margin, cost already borne;
    `mix`: share of the rows that get each arm; `rivals`: what each rival gains at the same
    predicted cost; `ahead`: how much more the policy does at equal realised cost, paired: what one
    turns out to spend more than the other is charged at the shadow price."""

    budget: float
    gain: Estimate
    spend: float
    last_return: Estimate
    mix: tuple[float, ...]
    rivals: Mapping[str, Estimate]
    ahead: Mapping[str, Estimate]

    def scaled(self, customers: float) -> PlanPoint:
        """Totals of so many customers; shares and returns stay."""
        return replace(
            self,
            budget=self.budget * customers,
            gain=self.gain.scaled(customers),
            spend=self.spend * customers,
            rivals={name: e.scaled(customers) for name, e in self.rivals.items()},
            ahead={name: e.scaled(customers) for name, e in self.ahead.items()},
        )


@dataclass(frozen=True)
class BudgetPlan:
    """The plan of one policy, measured on `rows` held-out rows; points by rising budget.

    full_budget: what all steps of the policy cost. recommended: the budget up to which the last
    unit still earns its cost; recommended_gain: measured on rows that did not choose it.
    """

    policy: str
    arms: tuple[str, ...]
    rows: int
    full_budget: float
    points: tuple[PlanPoint, ...]
    recommended: float
    recommended_gain: Estimate
    rival_arms: Mapping[str, str] = field(default_factory=dict)

    def scaled(self, customers: float) -> BudgetPlan:
        """The plan for so many customers like the rows."""
        return replace(
            self,
            full_budget=self.full_budget * customers,
            points=tuple(point.scaled(customers) for point in self.points),
            recommended=self.recommended * customers,
            recommended_gain=self.recommended_gain.scaled(customers),
        )

    def gain_at(self, budget: float) -> Estimate:
        """The gain at a budget, between the points that were measured; level beyond the last."""
        budgets = [point.budget for point in self.points]
        value = np.interp(budget, budgets, [point.gain.value for point in self.points])
        error = np.interp(budget, budgets, [point.gain.se for point in self.points])
        return Estimate(float(value), float(error))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back."""
        return {
            "policy": self.policy,
            "arms": list(self.arms),
            "rows": self.rows,
            "full_budget": self.full_budget,
            "recommended": self.recommended,
            "recommended_gain": self.recommended_gain.to_json(),
            "rival_arms": dict(self.rival_arms),
            "points": [
                {
                    "budget": p.budget,
                    "gain": p.gain.to_json(),
                    "spend": p.spend,
                    "last_return": p.last_return.to_json(),
                    "mix": list(p.mix),
                    "rivals": {name: e.to_json() for name, e in p.rivals.items()},
                    "ahead": {name: e.to_json() for name, e in p.ahead.items()},
                }
                for p in self.points
            ],
        }

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> BudgetPlan:
        """The plan of `to_json`."""

        def estimate(given: Mapping[str, float]) -> Estimate:
            return Estimate(given["value"], given["se"])

        return cls(
            policy=spec["policy"],
            arms=tuple(spec["arms"]),
            rows=int(spec["rows"]),
            full_budget=float(spec["full_budget"]),
            points=tuple(
                PlanPoint(
                    budget=float(p["budget"]),
                    gain=estimate(p["gain"]),
                    spend=float(p["spend"]),
                    last_return=estimate(p["last_return"]),
                    mix=tuple(p["mix"]),
                    rivals={name: estimate(e) for name, e in p["rivals"].items()},
                    ahead={name: estimate(e) for name, e in p["ahead"].items()},
                )
                for p in spec["points"]
            ),
            recommended=float(spec["recommended"]),
            recommended_gain=estimate(spec["recommended_gain"]),
            rival_arms=dict(spec["rival_arms"]),
        )


def budget_plan(
    policy: str,
    arms: tuple[str, ...],
    scored: Scored,
    predictions: Predictions,
    rng: np.random.Generator,
    *,
    rivals: Mapping[str, int] | None = None,
    min_profit: float = 0.0,
) -> BudgetPlan:
    """Measure a policy at every budget on held-out rows.

    scored: doubly robust scores of profit and of cost. predictions: of the served bundle, for the
    same rows. rivals: the arm (1..K) of each rival with a single coupon, chosen on other rows; all
    offers at random is always among the rivals. rng: halves the rows for the recommended gain.

    Raises DesignError where rows and predictions differ in number, and without rows.
    """
    p = predictions
    if len(p.reward) == 0:
        raise DesignError("plan: expected held-out rows, found none.")
    curve = gain_curve(
        scored.gain, p.reward, p.cost, spend=scored.spend, min_profit=min_profit, eligible=p.allowed
    )
    # By the predictions themselves: for its slope, the shadow price, and nothing else.
    nothing = np.zeros((len(p.reward), 1))
    predicted = ScoreMatrix(np.hstack([nothing, p.reward]), scored.gain.cluster)
    promised = gain_curve(predicted, p.reward, p.cost, min_profit=min_profit, eligible=p.allowed)
    others = _rival_curves(scored, p, rivals or {})
    full = curve.full_budget
    points = []
    for share in SHARES if full > 0 else SHARES[:1]:
        budget = full if share == 1.0 else share * full
        gain, spend = curve.at(budget), curve.spend_at(budget)
        lines = {RANDOM: _random_at(scored, p, curve, budget)}
        lines |= {name: (one.at(budget), one.spend_at(budget)) for name, one in others.items()}
        price = _shadow_price(promised, budget)
        points.append(
            PlanPoint(
                budget=budget,
                gain=gain.estimate,
                spend=spend.value,
                last_return=_last_return(curve, budget),
                mix=tuple(curve.policy_at(budget).mean(axis=0).tolist()),
                rivals={name: line.estimate for name, (line, _) in lines.items()},
                ahead={
                    name: ((gain - line) - (spend - paid).scaled(price)).estimate
                    for name, (line, paid) in lines.items()
                },
            )
        )
    return BudgetPlan(
        policy=policy,
        arms=arms,
        rows=len(curve),
        full_budget=full,
        points=tuple(points),
        recommended=recommended_budget(curve),
        recommended_gain=_gain_of_recommended(curve, rng),
        rival_arms={name: arms[k - 1] for name, k in (rivals or {}).items()},
    )


def recommended_budget(curve: GainCurve) -> float:
    """The budget per row up to which the last unit still earns its cost: where the measured gain,
    which bears every cost, is greatest; the smallest of equal ones."""
    budgets = np.linspace(0.0, curve.full_budget, _FINE)
    return float(budgets[int(curve.value(budgets).argmax())])


def _gain_of_recommended(curve: GainCurve, rng: np.random.Generator) -> Estimate:
    """What the recommended budget gains, each half of the clusters measured at the budget that the
    other half recommends: the greatest of a noisy curve is itself too high."""
    groups = int(curve.codes.max()) + 1
    first: BoolArray = (rng.permutation(groups) < groups // 2)[curve.codes]
    if not first.any() or first.all():
        return curve.at(recommended_budget(curve)).estimate
    halves = [curve.subset(first), curve.subset(~first)]
    found = [
        measured.at(min(recommended_budget(asked), measured.full_budget)).estimate
        for measured, asked in (halves, halves[::-1])
    ]
    weight = [len(half) / len(curve) for half in halves]
    value = sum(w * e.value for w, e in zip(weight, found, strict=True))
    error = np.sqrt(sum((w * e.se) ** 2 for w, e in zip(weight, found, strict=True)))
    return Estimate(float(value), float(error))


def _around(budget: float, full: float) -> tuple[float, float]:
    return max(budget - _REACH * full, 0.0), min(budget + _REACH * full, full)


def _last_return(curve: GainCurve, budget: float) -> Estimate:
    """Gain per currency of budget around it."""
    low, high = _around(budget, curve.full_budget)
    if high <= low:
        return Estimate(0.0, 0.0)
    return (curve.at(high) - curve.at(low)).scaled(1.0 / (high - low)).estimate


def _shadow_price(promised: GainCurve, budget: float) -> float:
    """Predicted profit per currency of budget around it, at least 0."""
    low, high = _around(budget, promised.full_budget)
    if high <= low:
        return 0.0
    return max(float(promised.value(high) - promised.value(low)) / (high - low), 0.0)


def _rival_curves(
    scored: Scored, p: Predictions, rivals: Mapping[str, int]
) -> dict[str, GainCurve]:
    ranks = rankings(p)
    return {
        name: ranked_curve(
            scored.gain, ranks[name][arm], arm, p.cost, spend=scored.spend, eligible=p.allowed
        )
        for name, arm in rivals.items()
    }


def _random_at(
    scored: Scored, p: Predictions, curve: GainCurve, budget: float
) -> tuple[Influence, Influence]:
    """Gain and spend of every allowed arm equally likely, to a random share of the rows that costs
    the budget: budget x mean / mean cost, whose influence follows by the delta method."""
    count = p.allowed.sum(axis=1, keepdims=True)
    policy: FloatArray = np.where(p.allowed, 1.0 / np.maximum(count, 1), 0.0)
    cost = (policy * p.cost).sum(axis=1)
    full = float(cost.mean())

    def measured(values: FloatArray) -> Influence:
        mean = float(values.mean())
        if budget >= full:
            return Influence(mean, values - mean, curve.codes)
        each = mean / full
        return Influence(budget * each, budget / full * (values - each * cost), curve.codes)

    return measured(scored.gain.gains(policy)), measured(scored.spend.gains(policy))


def full_cost(p: Predictions, min_profit: float = 0.0) -> float:
    """What all steps of the policy cost per row, by prediction: to compare rows with others."""
    start, steps = hull_path(p.reward, p.cost, min_profit=min_profit, eligible=p.allowed)
    return float(steps.price.sum() / max(len(start), 1))
