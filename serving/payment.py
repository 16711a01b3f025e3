"""Offers that were inserted take their piece of a coupon and are paid for; the others become none.

Rows are locked in one order everywhere, coupons by id and then budgets by id, so that two
transactions never wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from sqlalchemy.engine import Connection

from serving import schemas
from serving.log import ledger, stock
from serving.log.store import Store
from uplift.allocation import allocate
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.desk import Group


def pay(connection: Connection, store: Store, groups: Sequence[Group], lost: set[str]) -> None:
    """Take pieces and charge budgets for the offers of these groups; what there is no piece or no
    money for becomes none, with its reason. lost: ids of decisions that were not inserted."""
    wanted: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        limited = group.rules.campaign.limited
        for i in _offers(group, lost):
            coupon = group.made.items[i].arm if group.made is not None else ""
            if coupon in limited:
                wanted.setdefault(coupon, []).append((group, i))
    for coupon, offers in sorted(wanted.items()):
        _hand_out(connection, store, coupon, offers)
    back: dict[str, int] = {}
    for group in sorted(groups, key=lambda g: g.rules.campaign_id):
        for arm in _charge(connection, store, group, lost):
            if arm in group.rules.campaign.limited:
                back[arm] = back.get(arm, 0) + 1
    for coupon, count in sorted(back.items()):
        stock.give_back(connection, coupon, count)


def refused(item: schemas.Decision, reason: Reason) -> schemas.Decision:
    """The same decision with nothing offered; the assigned arm stays."""
    return msgspec.structs.replace(
        item,
        action="none",
        coupon_id=None,
        reason=reason,
        expected_incremental_profit_micros=0,
        expected_cost_micros=0,
        valid_until=None,
    )


def _offers(group: Group, lost: set[str]) -> list[int]:
    """Which of the group's decisions are offers that were inserted."""
    made = group.made
    return [
        i
        for i, decision_id in enumerate(group.ids)
        if made is not None and made.items[i].action == "offer" and decision_id not in lost
    ]


def _lose(
    connection: Connection, store: Store, group: Group, out: Iterable[int], reason: Reason
) -> None:
    made = group.made
    assert made is not None
    rows = list(out)
    store.lose(connection, [group.ids[i] for i in rows], reason.value)
    for i in rows:
        made.items[i] = refused(made.items[i], reason)


def _hand_out(
    connection: Connection, store: Store, coupon: str, offers: Sequence[tuple[Group, int]]
) -> None:
    """A piece for each offer; where there are too few, for those of the greatest profit."""
    if stock.take(connection, coupon, len(offers)):
        return
    left = min(stock.locked(connection, coupon), len(offers))
    ranked = sorted(
        offers, key=lambda one: -one[0].made.items[one[1]].expected_incremental_profit_micros
        if one[0].made is not None else 0,
    )  # fmt: skip
    if left and not stock.take(connection, coupon, left):
        left = 0
    for group, i in ranked[left:]:
        _lose(connection, store, group, [i], Reason.COUPON_OUT_OF_STOCK)


def _charge(connection: Connection, store: Store, group: Group, lost: set[str]) -> list[str]:
    """Pay for the offers that were inserted; returns the arms of those that the budget does not
    bear and that became none."""
    made, offers = group.made, _offers(group, lost)
    if made is None or not offers:
        return []
    campaign = group.rules.campaign_id
    cost = np.array([made.kept.reserve[i] for i in offers], dtype=np.int64)
    if ledger.charge(connection, campaign, int(cost.sum())):
        return []
    budget = ledger.locked(connection, campaign)
    kept = np.zeros(len(offers), dtype=bool)
    if budget.active and budget.left is not None:
        value = np.array([made.kept.profit[i] for i in offers])
        # An explored offer is worth its draw, whatever it is predicted to bring.
        worth = np.maximum(value, 0.0) + cost / 1e6 * 1e-9 + 1e-9
        fits = allocate(worth[:, None], cost[:, None].astype(np.float64), budget=float(budget.left))
        kept = fits.choice > 0
    if kept.any() and not ledger.charge(connection, campaign, int(cost[kept].sum())):
        kept[:] = False
    reason = Reason.BUDGET_EXHAUSTED if budget.active else Reason.CAMPAIGN_PAUSED
    out = [offers[j] for j in np.flatnonzero(~kept).tolist()]
    arms = [made.items[i].arm for i in out]
    _lose(connection, store, group, out, reason)
    return arms
