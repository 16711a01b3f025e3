"""Policies at one budget, and their rivals at equal cost, on rows that no model has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from uplift.allocation import allocate
from uplift.data import BoolArray, FloatArray
from uplift.errors import DesignError
from uplift.scores import Estimate, ScoreMatrix, one_hot, top_up_to

NO_OFFER = "no_offer"
RANDOM = "random"
BEST_RANDOM = "best_coupon_random"
BEST_RESPONSE = "best_coupon_by_response"
BEST_UPLIFT = "best_coupon_by_uplift"
RIVALS = {
    RANDOM: "all offers at random, at equal cost",
    BEST_RANDOM: "best single coupon at random, at equal cost",
    BEST_RESPONSE: "best single coupon ranked by response propensity, at equal cost",
    BEST_UPLIFT: "best single coupon ranked by its uplift, at equal cost",
}


@dataclass(frozen=True)
class Predictions:
    """What models say of n rows: reward, cost (n, K); response (n,); `allowed` (n, K): arms
    that may be offered to the row."""

    reward: FloatArray
    cost: FloatArray
    response: FloatArray
    allowed: BoolArray


@dataclass(frozen=True)
class PolicyValue:
    """A policy (n, K) of probabilities and what it is worth per row, in currency.

    gain   against no offer; `spend`: realised cost, estimated doubly robust as well
    predicted_spend  the models' own sum, which the budget binds
    """

    name: str
    policy: FloatArray
    gain: Estimate
    spend: Estimate
    predicted_spend: float

    @property
    def treated_share(self) -> float:
        return float(self.policy.sum(axis=1).mean())


@dataclass(frozen=True)
class Scored:
    """Rows with their score matrices of reward (`gain`) and of cost (`spend`)."""

    gain: ScoreMatrix
    spend: ScoreMatrix

    def value(self, name: str, policy: FloatArray, cost: FloatArray) -> PolicyValue:
        return PolicyValue(
            name,
            policy,
            self.gain.gain(policy),
            self.spend.gain(policy),
            float((policy * cost).sum(axis=1).mean()),
        )


def solve(
    p: Predictions, budget_per_row: float | None, min_profit: float
) -> tuple[FloatArray, float]:
    """(n, K) the arms that the models choose within the budget, and the shadow price."""
    budget = None if budget_per_row is None else budget_per_row * len(p.reward)
    chosen = allocate(p.reward, p.cost, budget=budget, min_profit=min_profit, eligible=p.allowed)
    return one_hot(chosen.choice, p.reward.shape[1]), chosen.shadow_price


def model_policy(p: Predictions, budget_per_row: float | None, min_profit: float) -> FloatArray:
    """(n, K) the arms that the models choose within the budget."""
    return solve(p, budget_per_row, min_profit)[0]


def single_arm(rank: FloatArray, k: int, p: Predictions, spend_per_row: float | None) -> FloatArray:
    """(n, K) arm k (1..K) to the highest ranks until the spend is reached."""
    allowed = p.allowed[:, k - 1]
    total = None if spend_per_row is None else spend_per_row * len(rank)
    share = np.zeros(len(rank))
    share[allowed] = top_up_to(rank[allowed], p.cost[allowed, k - 1], total)
    policy = np.zeros_like(p.reward)
    policy[:, k - 1] = share
    return policy


def random_policy(p: Predictions, spend_per_row: float | None) -> FloatArray:
    """(n, K) every allowed arm equally likely, to a random share that costs as much."""
    count = p.allowed.sum(axis=1, keepdims=True)
    policy = np.where(p.allowed, 1 / np.maximum(count, 1), 0.0)
    full = float((policy * p.cost).sum(axis=1).mean())
    if spend_per_row is None or full <= spend_per_row or full <= 0:
        return policy
    return policy * (spend_per_row / full)


def best_arm_on(
    scored: Scored, rank: Mapping[int, FloatArray], p: Predictions, spend_per_row: float | None
) -> int:
    """The arm (1..K) whose single-arm policy gains most on these rows; arms that no row may get
    are left out. `rank` holds the ranking that arm k would be sent by."""
    values = {
        k: float(scored.gain.gains(single_arm(rank[k], k, p, spend_per_row)).mean())
        for k in rank
        if p.allowed[:, k - 1].any()
    }
    if not values:
        raise DesignError(
            f"no arm may be offered to any of {len(p.reward)} rows: expected at least one. "
            "Check `active` under offers and the assignment probabilities."
        )
    return max(values, key=lambda k: (values[k], -k))


def rankings(p: Predictions) -> dict[str, dict[int, FloatArray]]:
    """Per rival with a single coupon, the ranking by which arm k (1..K) is sent."""
    arms = range(1, p.reward.shape[1] + 1)
    flat = np.zeros(len(p.response))
    return {
        BEST_RANDOM: dict.fromkeys(arms, flat),
        BEST_RESPONSE: dict.fromkeys(arms, p.response),
        BEST_UPLIFT: {k: p.reward[:, k - 1] for k in arms},
    }


def choose_rivals(scored: Scored, p: Predictions, spend_per_row: float | None) -> dict[str, int]:
    """The arm of each single-coupon rival, chosen on training rows."""
    return {name: best_arm_on(scored, rank, p, spend_per_row) for name, rank in rankings(p).items()}


def against(
    scored: Scored, policy: FloatArray, rivals: Mapping[str, FloatArray], price: float
) -> dict[str, Estimate]:
    """What `policy` gains over each rival, paired, at equal realised cost: what one turns out to
    spend more than the other is charged at `price`, the shadow price (see `ScoreMatrix.charged`).
    Policies (n, K)."""
    charged = scored.gain.charged(scored.spend, price)
    return {name: charged.compare(policy, rival) for name, rival in rivals.items()}


def rival_policies(
    p: Predictions, arms: Mapping[str, int], spend_per_row: float | None
) -> dict[str, FloatArray]:
    """Every rival's policy (n, K) at the given spend per row."""
    policies = {RANDOM: random_policy(p, spend_per_row)}
    for name, rank in rankings(p).items():
        if name in arms:
            policies[name] = single_arm(rank[arms[name]], arms[name], p, spend_per_row)
    return policies
