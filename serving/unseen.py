"""Coupons that the model has not seen: what they may cost, so that draws can try them.

Nobody knows what such a coupon changes, so the allocation never chooses it; exploration may. What
it is expected to cost is replayed: contact, plus the chance of an order within its validity times
the mean face cost on the orders of the customer's tier in the past year, less what is never claimed
(points). That everybody who orders redeems makes it rather too dear than too cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from features.config import Config
from features.spine import naive_utc, seen_before
from features.tables import Tables
from uplift.coupons import FirstOrder, ThresholdOff
from uplift.data import Float32Array
from uplift.kinds import Line, Order
from uplift.offers import Offer, parse_offers
from uplift.redemption import Situation, redeem

REPLAY_DAYS = 365
# Orders replayed of each tier.
ORDERS = 400
NO_ORDERS = "prospect"


@dataclass(frozen=True)
class Unseen:
    """Coupons that only draws may give: their ids, and (n, U) expected cost, currency."""

    arms: tuple[str, ...]
    cost: Float32Array


def unseen_offers(config: Config, arms: tuple[str, ...]) -> tuple[Offer, ...]:
    """Active offers of the configuration that are not among the model's arms."""
    specs = [o.model_dump() for o in config.offers if o.active and o.coupon_id not in arms]
    return parse_offers(specs)


def unseen_arms(
    tables: Tables,
    ids: pd.Series[Any],
    tier: npt.NDArray[np.object_],
    recency_days: npt.NDArray[np.float64],
    as_of: datetime,
    config: Config,
    arms: tuple[str, ...],
) -> Unseen | None:
    """The unseen coupons of a configuration and what each is expected to cost each customer; None
    where there are none, and without transactions, whose orders would be replayed.

    ids, tier, recency_days: (n,) of the customers.
    """
    offers = unseen_offers(config, arms)
    if not offers or tables.transactions is None:
        return None
    orders = _orders(tables, pd.Series(tier, index=ids.to_numpy()), as_of)
    everything = [order for own in orders.values() for order in own]
    cost = np.empty((len(ids), len(offers)))
    for u, offer in enumerate(offers):
        ordering = np.asarray(recency_days <= offer.valid_days)
        for name in pd.unique(tier):
            rows = tier == name
            mine = orders.get(str(name)) or everything
            rate = float(ordering[rows].mean()) if name != NO_ORDERS else float(ordering.mean())
            face = _face_cost(offer, mine, new=name == NO_ORDERS)
            cost[rows, u] = offer.expected_cost(rate, face)
    return Unseen(tuple(o.coupon_id for o in offers), cost.astype(np.float32))


def _face_cost(offer: Offer, orders: list[Order], *, new: bool) -> float:
    """Mean over orders of what is expected to be claimed; a first-order coupon costs who has
    ordered before nothing, and what an order earns for the next is used on one like it."""
    claimed = float(offer.coupon.claimed)
    if offer.coupon.certain or not orders:
        return (offer.max_face_cost or 0.0) * claimed
    if isinstance(offer.coupon, FirstOrder) and not new:
        return 0.0
    moment = datetime(2000, 1, 1) if offer.valid_from is None else offer.valid_from
    now = Situation(ordered_at=moment, granted_at=moment)
    if isinstance(offer.coupon, ThresholdOff):
        orders = [replace(order, reward=_granted(offer, offer.coupon, order)) for order in orders]
    return claimed * float(np.mean([redeem(offer, order, now).cost for order in orders]))


def _granted(offer: Offer, coupon: ThresholdOff, order: Order) -> float:
    """Currency that an order earns for the next."""
    within = tuple(line for line in order.lines if offer.scope.holds(line))
    return coupon.granted(replace(order, lines=within))


def _orders(tables: Tables, tier: pd.Series[Any], as_of: datetime) -> Mapping[str, list[Order]]:
    """By tier, some orders of the past year: the newest of each of the first customers by id."""
    t, moment = tables.transactions, naive_utc(as_of)
    assert t is not None
    newest = t.filter(
        seen_before(t.transacted_at, moment),
        t.transacted_at > moment - timedelta(days=REPLAY_DAYS),
        t.amount >= 0,
        t.quantity > 0,
    )
    some = pd.Series(tier.index, index=tier.to_numpy()).groupby(level=0).head(ORDERS)
    chosen = ibis.memtable(pa.table({"id": pa.array(some.tolist(), pa.string())}))
    lines = (
        newest.filter(newest.customer_id.isin(chosen.id))
        .select(
            "customer_id", "order_id", "transacted_at", "amount", "discount", "quantity",
            "product_id", "category",
        )
        .to_pyarrow()
        .to_pandas()
    )  # fmt: skip
    lines["last"] = lines.groupby("customer_id")["transacted_at"].transform("max")
    lines = lines[lines["transacted_at"] == lines["last"]]
    lines["listed"] = lines["amount"] + lines["discount"].fillna(0.0)
    lines = lines.astype({"product_id": object, "category": object})
    found: dict[str, list[Order]] = {}
    for (customer, _), own in lines.groupby(["customer_id", "order_id"], sort=True):
        rows = zip(own["listed"], own["quantity"], own["product_id"], own["category"], strict=True)
        order = Order(
            tuple(
                Line(round(value, 2), units, _text(product), _text(category))
                for value, units, product, category in rows
            ),
            first=True,
        )
        found.setdefault(str(tier[customer]), []).append(order)
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
