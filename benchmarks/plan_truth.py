"""The served model's costs and plan beside the truth of the simulated shop, for `benchmarks.truth`.

Costs: what each coupon is expected to cost all held-out exposures, against what it truly would
(the analytic expectation), and what was paid for those that had it. Plan: at four budgets what it
says the policy gains, against what the policy truly gains and how far that is ahead of each rival.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.report import WIDTH, text_table
from uplift.allocation import allocate
from uplift.evaluation import Predictions, Scored
from uplift.plan_report import SHOWN, nearest
from uplift.planning import BudgetPlan, PlanPoint, budget_plan
from uplift.scores import Estimate, ScoreMatrix, from_influence

FloatArray = npt.NDArray[np.float64]
PER = 1000
# How near to the analytic total the expected one has to be.
CLOSE = 0.05


@dataclass(frozen=True)
class CostLine:
    """One coupon. expected, analytic: mean cost per held-out exposure, every exposure counted;
    ratio: the one over the other, with the noise of what was paid for the training rows, to which
    the expected total was set. paid: what was paid over what was expected, of the held-out
    exposures that had the coupon; its error holds that noise and the held-out rows' own."""

    coupon: str
    expected: float
    analytic: float
    ratio: Estimate
    paid: Estimate


@dataclass(frozen=True)
class PlanLine:
    """One budget, per row. promised: the sum of what the models predict for whom they choose."""

    share: float
    planned: PlanPoint
    true: PlanPoint
    promised: float


def predictions_of(frame: pd.DataFrame, report: dict[str, Any]) -> Predictions:
    """What the served bundle says of the held-out rows, which are all the rows of `frame`."""
    reward, cost = (
        frame[[f"{kind}|{arm}" for arm in report["arms"]]].to_numpy(dtype=np.float64)
        for kind in ("reward", "cost")
    )
    allowed = np.broadcast_to(np.asarray(report["offered"], dtype=bool), cost.shape)
    return Predictions(reward, cost, frame["response"].to_numpy(dtype=np.float64), allowed)


def cost_lines(frame: pd.DataFrame, cost: FloatArray, report: dict[str, Any]) -> list[CostLine]:
    """A line per coupon; frame: every row of the training; cost (n, K): true, of every row.

    The noise of the training rows is that of the held-out ones, scaled to their number.
    """
    test = frame["is_test"].to_numpy(dtype=bool)
    held = predictions_of(frame[test], report).cost
    arm, cluster = frame["arm"].to_numpy(), frame["cluster"].to_numpy()
    paid = frame["paid"].to_numpy(dtype=np.float64)
    lines = []
    for k, coupon in enumerate(report["arms"]):
        had = arm == k + 1
        expected = held[had[test], k]
        ratio = paid[test & had].sum() / expected.sum()
        psi = (paid[test & had] - ratio * expected) / expected.mean()
        own = from_influence(float(ratio), psi, cluster[test & had])
        learned = own.se * float(np.sqrt((test & had).sum() / (~test & had).sum()))
        every, true = float(held[:, k].mean()), float(cost[test, k].mean())
        lines.append(
            CostLine(
                coupon,
                every,
                true,
                Estimate(every / true, learned),
                Estimate(own.value, float(np.hypot(own.se, learned))),
            )
        )
    return lines


def plan_lines(
    frame: pd.DataFrame, tau: FloatArray, cost: FloatArray, report: dict[str, Any]
) -> list[PlanLine]:
    """A line per budget; frame: every row of the training; tau, cost (n, K): true, of every row.

    The truth is measured as the plan is, with true effects in place of scores.
    """
    plan = BudgetPlan.from_json(report["plan"])
    if not plan.full_budget:
        return []
    test = frame["is_test"].to_numpy(dtype=bool)
    p = predictions_of(frame[test], report)
    cluster = frame.loc[test, "cluster"].to_numpy()
    nothing = np.zeros((len(p.cost), 1))
    known = Scored(
        *(ScoreMatrix(np.hstack([nothing, true[test]]), cluster) for true in (tau, cost))
    )
    arms = list(plan.arms)
    rivals = {rival: 1 + arms.index(arm) for rival, arm in plan.rival_arms.items()}
    least = report["min_profit"]
    rng = np.random.default_rng(0)  # halves the rows for a number that is not used
    truth = budget_plan(plan.policy, plan.arms, known, p, rng, rivals=rivals, min_profit=least)
    lines = []
    for share in SHOWN:
        planned, true = (nearest(one, share * one.full_budget) for one in (plan, truth))
        budget = planned.budget * len(p.cost)
        best = allocate(p.reward, p.cost, budget=budget, min_profit=least, eligible=p.allowed)
        lines.append(PlanLine(share, planned, true, best.value / len(p.cost)))
    return lines


def cost_table(lines: list[CostLine], currency: str) -> str:
    """The costs as text."""
    rows = [
        [
            line.coupon,
            f"{line.expected * PER:.1f}",
            f"{line.analytic * PER:.1f}",
            *(f"{e.value:.3f} [{e.lo:.3f}, {e.hi:.3f}]" for e in (line.ratio, line.paid)),
        ]
        for line in lines
    ]
    missed = [line.coupon for line in lines if abs(line.ratio.value - 1) > CLOSE]
    told = (
        f"all within {CLOSE:.0%}" if not missed else f"not within {CLOSE:.0%}: {', '.join(missed)}"
    )
    return text_table(
        f"Expected cost of each coupon for every held-out exposure, {currency} per {PER:,}",
        ["coupon", "expected", "true", "expected / true, 95%", "paid / expected, 95%"],
        rows,
        textwrap.wrap(
            f"Expected over true total: {told}. Its interval is the noise of what was paid for the "
            "training rows; that of paid over expected holds the held-out rows' own noise as well.",
            WIDTH,
        ),
    )


def plan_table(lines: list[PlanLine], currency: str) -> str:
    """The plan as text: gains, then how far the policy is truly ahead of each rival."""

    def told(e: Estimate) -> str:
        return f"{e.value * PER:.1f} [{e.lo * PER:.1f}, {e.hi * PER:.1f}]"

    gains = [
        [
            f"{line.share:.0%}",
            f"{line.planned.budget * PER:.0f}",
            told(line.planned.gain),
            f"{line.true.gain.value * PER:.1f}",
            "yes" if line.planned.gain.lo <= line.true.gain.value <= line.planned.gain.hi else "no",
            f"{line.true.spend * PER:.0f}",
            f"{line.promised * PER:.1f}",
        ]
        for line in lines
    ]
    ahead: list[list[str] | None] = []
    for name in lines[0].true.ahead:
        ahead += [None] if ahead else []
        ahead += [[name, f"{line.share:.0%}", told(line.true.ahead[name])] for line in lines]
    return "\n\n".join(
        [
            text_table(
                f"The plan beside the truth, {currency} per {PER:,} held-out exposures",
                ["budget", "money", "planned gain", "true gain", "held", "true cost", "promised"],
                gains,
                ["Promised: the models' own sum; it is biased, and nowhere reported as the gain."],
            ),
            text_table(
                "True gain less that of each rival; true cost is charged at the shadow price; 95%",
                ["ahead of", "budget", "by"],
                ahead,
            ),
        ]
    )
