"""Costs and plan beside the truth, on rows small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.plan_truth import cost_lines, cost_table, plan_lines, plan_table
from benchmarks.report import WIDTH
from uplift.evaluation import Predictions, Scored
from uplift.planning import budget_plan
from uplift.scores import ScoreMatrix

ARMS = ("a", "b")


def rows(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, dict[str, Any]]:
    """n rows, half of them held out; true effects and costs; predictions with some noise."""
    rng = np.random.default_rng(seed)
    tau = rng.normal([0.5, 0.2], 1.0, (n, 2))
    cost = rng.uniform(0.5, 1.5, (n, 2))
    arm = rng.integers(0, 3, n)
    paid = np.column_stack([np.zeros(n), cost * rng.gamma(2, 0.5, (n, 2))])[np.arange(n), arm]
    test = np.arange(n) % 2 == 0
    reward = tau + rng.normal(0, 1.5, (n, 2))
    frame = pd.DataFrame(
        {"is_test": test, "cluster": np.arange(n) // 4, "arm": arm, "paid": paid, "response": 0.5}
    )
    for k, name in enumerate(ARMS):
        frame[f"reward|{name}"] = np.where(test, reward[:, k], np.nan)
        frame[f"cost|{name}"] = np.where(test, cost[:, k] * (1.02, 1.2)[k], np.nan)
    scored = Scored(
        *(ScoreMatrix(rng.normal(0, 1, (test.sum(), 3)), np.arange(n)[test] // 4) for _ in "ab")
    )
    p = Predictions(
        reward[test],
        frame.loc[test, ["cost|a", "cost|b"]].to_numpy(),
        np.full(test.sum(), 0.5),
        np.ones((test.sum(), 2), dtype=bool),
    )
    plan = budget_plan("x", ARMS, scored, p, rng, rivals={"best_coupon_by_uplift": 1})
    report = {
        "arms": list(ARMS), "offered": [True, True], "min_profit": 0.0, "plan": plan.to_json(),
    }  # fmt: skip
    return frame, tau, cost, report


def test_costs_of_all_and_of_those_who_had_the_coupon() -> None:
    frame, _, cost, report = rows(4000, 1)
    a, b = cost_lines(frame, cost, report)
    assert (a.coupon, b.coupon) == ARMS
    assert a.ratio.value == pytest.approx(1.02)
    assert b.ratio.value == pytest.approx(1.2)
    test = frame["is_test"].to_numpy()
    assert a.analytic == pytest.approx(cost[test, 0].mean())
    had = frame[test & (frame["arm"] == 2).to_numpy()]
    assert b.paid.value == pytest.approx(had["paid"].sum() / had["cost|b"].sum())
    assert b.paid.lo < 1 / 1.2 < b.paid.hi < 1
    text = cost_table([a, b], "EUR")
    assert "not within 5%: b." in text
    many = cost_table([a, *(replace(b, coupon=f"coupon_number_{i}") for i in range(20))], "EUR")
    assert max(len(line) for line in many.splitlines()) <= WIDTH
    assert "all within 5%" in cost_table([a], "EUR")
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_the_interval_of_what_was_paid_holds_the_noise_of_training_too() -> None:
    """As many rows on either side: sqrt(2) times the error of the held-out rows alone."""
    frame, _, cost, report = rows(4000, 2)
    line = cost_lines(frame, cost, report)[0]
    had = frame[frame["is_test"] & (frame["arm"] == 1)]
    left = had["paid"] - line.paid.value * had["cost|a"]
    sums = left.groupby(had["cluster"]).sum()
    alone = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / had["cost|a"].sum()
    trained = (~frame["is_test"] & (frame["arm"] == 1)).sum()
    assert line.paid.se == pytest.approx(alone * np.sqrt(1 + len(had) / trained))
    assert line.ratio.se == pytest.approx(alone * np.sqrt(len(had) / trained))


def test_the_plan_beside_the_truth() -> None:
    frame, tau, cost, report = rows(4000, 3)
    lines = plan_lines(frame, tau, cost, report)
    assert [line.share for line in lines] == [0.05, 0.25, 0.5, 1.0]
    test = frame["is_test"].to_numpy()
    # At the full budget everybody has the arm of the greatest predicted reward above 0.
    reward = frame.loc[test, ["reward|a", "reward|b"]].to_numpy()
    best = reward.argmax(axis=1)
    sent = reward.max(axis=1) > 0
    full = lines[-1]
    at = np.arange(len(best))
    assert full.true.gain.value == pytest.approx((tau[test][at, best] * sent).mean())
    assert full.true.spend == pytest.approx((cost[test][at, best] * sent).mean())
    assert full.promised == pytest.approx((reward[at, best] * sent).mean())
    assert full.promised > full.true.gain.value, "noise that was picked"
    rival = full.true.rivals["best_coupon_by_uplift"].value
    ahead = full.true.ahead["best_coupon_by_uplift"]
    # At the end of the path money is worth little, and so is what one spends more.
    assert ahead.value == pytest.approx(full.true.gain.value - rival, abs=0.02)
    text = plan_table(lines, "EUR")
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert f"{full.true.gain.value * 1000:.1f}" in text
    # A shop of large amounts fits as well.
    wide = plan_table(plan_lines(frame, 1e4 * tau, 1e3 * cost, report), "EUR")
    assert max(len(line) for line in wide.splitlines()) <= WIDTH


def test_a_policy_that_sends_nothing_has_no_plan() -> None:
    frame, tau, cost, report = rows(400, 4)
    report["plan"] = {**report["plan"], "full_budget": 0.0}
    assert plan_lines(frame, tau, cost, report) == []
