"""A first look at a running campaign: who was assigned what, and what followed.

Everybody counts with the first draw in the period, whatever came later: refusals by caps or consent
can depend on earlier treatment, and offers that lost the race for the last money or piece were
drawn as well (ADR 0026). Held-out customers and all others differ by chance alone, so the
difference of their order shares is the effect of the campaign as it was run (intention to treat).
Arms other than the holdout were chosen by the policy and must not be compared. What was sent and
redeemed is that of the decision which stands in the window of the first draw.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Integer, case, cast, exists, func, select
from sqlalchemy.engine import Connection

from serving.evaluation import moment, timestamp
from serving.log.ledger import Budget
from serving.log.schema import decisions, events
from serving.log.store import stands
from serving.resources import ArmReport, BudgetState, CampaignReport, Imbalance, Lift

# Below this, that the shares came about by chance is not believed.
SRM_LEVEL = 0.001
Z95 = 1.959964


def report(
    campaign_id: str, budget: Budget, start: int, end: int, connection: Connection
) -> CampaignReport:
    """The report of first draws in [start, end), microseconds, and of what came until `end`."""
    d, standing = decisions.c, decisions.alias("standing")
    s = standing.c
    first = (
        select(func.min(d.decision_id).label("decision_id"))
        .where(
            d.campaign_id == campaign_id,
            d.probs.is_not(None),
            d.decided_at >= start,
            d.decided_at < end,
        )
        .group_by(d.customer_id)
        .subquery()
    )
    redeemed = exists().where(
        events.c.decision_id == s.decision_id,
        events.c.type == "redeemed",
        events.c.occurred_at < end,
    )
    ordered = exists().where(
        events.c.customer_id == d.customer_id,
        events.c.type == "ordered",
        events.c.occurred_at >= d.decided_at,
        events.c.occurred_at < end,
    )
    held = d.holdout_kind != "none"
    reason = func.coalesce(s.reason, d.reason).label("reason")
    rows = connection.execute(
        select(
            d.arm,
            reason,
            held.label("held"),
            func.count().label("customers"),
            _sum(s.sent_at < end).label("sent"),
            _sum((s.reservation == "realised") & redeemed).label("redeemed"),
            _sum(ordered).label("orders"),
            func.sum(d.holdout_share).label("share"),
        )
        .join(first, first.c.decision_id == d.decision_id)
        .join(standing, stands(d, s) & (s.decided_at < end), isouter=True)
        .group_by(d.arm, reason, held)
        .order_by(d.arm, reason)
    ).all()
    arms: dict[str, list[int]] = {}
    reasons: dict[str, int] = {}
    for row in rows:
        reasons[row.reason] = reasons.get(row.reason, 0) + row.customers
        sums = arms.setdefault(row.arm, [0, 0, 0, 0])
        for i, value in enumerate((row.customers, row.sent, row.redeemed, row.orders)):
            sums[i] += int(value)
    out = [row for row in rows if row.held]
    inside = [row for row in rows if not row.held]
    return CampaignReport(
        campaign_id=campaign_id,
        since=timestamp(moment(start)),
        until=timestamp(moment(end)),
        arms=[ArmReport(arm, *sums) for arm, sums in sorted(arms.items())],
        srm=imbalance(
            sum(row.customers for row in out),
            sum(row.customers for row in rows),
            sum(float(row.share) for row in rows),
        ),
        uplift=lift(
            sum(int(row.orders) for row in inside),
            sum(row.customers for row in inside),
            sum(int(row.orders) for row in out),
            sum(row.customers for row in out),
        ),
        budget=BudgetState(budget.cap, budget.committed, budget.realised, budget.overshoot),
        reasons=reasons,
    )


def _sum(condition: Any) -> Any:
    return cast(func.sum(case((condition, 1), else_=0)), Integer)


def imbalance(held: int, customers: int, expected: float) -> Imbalance:
    """Whether as many are held out as should be: z test of a binomial count."""
    share = expected / customers if customers else 0.0
    spread = math.sqrt(customers * share * (1.0 - share))
    if spread == 0.0:
        return Imbalance(1.0, held == round(expected))
    p = math.erfc(abs(held - expected) / spread / math.sqrt(2.0))
    return Imbalance(p, p >= SRM_LEVEL)


def lift(orders: int, customers: int, held_orders: int, held: int) -> Lift | None:
    """Difference of order shares, not held out less held out, with a 95% interval (Wald); None
    where one side has fewer than two customers."""
    if customers < 2 or held < 2:
        return None
    here, there = orders / customers, held_orders / held
    spread = math.sqrt(here * (1 - here) / (customers - 1) + there * (1 - there) / (held - 1))
    estimate = here - there
    return Lift(estimate, [estimate - Z95 * spread, estimate + Z95 * spread])
