"""What each exposure came to cost: as logged, else from redemptions and orders."""

from __future__ import annotations

import numpy as np
import pandas as pd

from features.errors import DataError
from features.tables import Tables
from uplift.coupons import Points
from uplift.data import FloatArray
from uplift.offers import Offer, Scope


def costs_of(
    tables: Tables, frame: pd.DataFrame, offers: tuple[Offer, ...], window: int
) -> FloatArray:
    """(n,) currency. The logged cost is the whole one; where none is logged, contact and

    - what the coupon took off orders, for kinds that stand in their `discount`;
    - the one cost of a use, or of the grant, for gifts and benefits;
    - what points on the orders are worth, less what is never claimed.

    frame: exposures with arm, cost, redeemed and coupon_discount, and `_row`, their place in the
    table `_exposures` of the connection. window: days from the assignment on.

    Raises DataError where nothing tells the cost: points without logged costs or transactions.
    """
    cost = np.zeros(len(frame))
    logged = frame["cost"].to_numpy(dtype=float, na_value=np.nan)
    for offer in offers:
        mine = (frame["arm"] == offer.coupon_id).to_numpy()
        if offer.shows_as_discount or offer.max_face_cost == 0:
            coupon = frame["coupon_discount"].to_numpy()
        elif offer.max_face_cost is not None:
            used = 1.0 if offer.coupon.certain else frame["redeemed"].to_numpy()
            claimed = offer.max_face_cost * float(offer.coupon.claimed)
            coupon = used * np.full(len(frame), claimed)
        elif not np.isnan(logged[mine]).any():
            coupon = np.zeros(len(frame))
        elif isinstance(offer.coupon, Points) and tables.transactions is not None:
            coupon = _points(tables, frame, offer, offer.coupon, window)
        else:
            raise DataError(
                "exposures.cost",
                expected=f"what each exposure of {offer.coupon_id} ({offer.kind}) came to cost",
                found=f"{int(np.isnan(logged[mine]).sum())} without",
                remedy="Such a coupon takes nothing off the order: log its cost, or give the "
                "transactions, whose orders tell it.",
            )
        cost[mine] = offer.contact_cost + coupon[mine] * offer.funded_share
    return np.where(np.isnan(logged) | (frame["arm"] == "control"), cost, logged)


def _points(
    tables: Tables, frame: pd.DataFrame, offer: Offer, coupon: Points, window: int
) -> FloatArray:
    """(n,) what the points of each redeemed exposure are expected to cost.

    They are given on the orders that bear the coupon; where a redemption is known and no order
    bears it, on the orders since the assignment. The first `per_customer_limit` count.
    """
    orders = tables.con.raw_sql(_orders_sql(tables, offer, window)).df()
    orders = orders.merge(frame[["_row", "redeemed"]], on="_row")
    named = orders.groupby("_row")["own"].transform("max")
    orders = orders[orders["own"] | (~named & (orders["redeemed"] > 0))]
    orders = orders.sort_values(["_row", "ordered_at", "order_id"], kind="stable")
    orders = orders[orders.groupby("_row").cumcount() < offer.per_customer_limit]
    each = coupon.expected_on(orders["paid"].to_numpy(dtype=float))
    worth = pd.Series(each, orders["_row"].to_numpy()).groupby(level=0).sum()
    found = worth.reindex(frame["_row"].to_numpy(), fill_value=0.0)
    return np.asarray(found, dtype=np.float64)


def _orders_sql(tables: Tables, offer: Offer, window: int) -> str:
    """Valid orders in the windows of an offer's exposures: _row, order_id, ordered_at, what was
    paid for lines in scope (returns in the window taken off), and whether one bears the coupon."""
    assert tables.transactions is not None
    lines = tables.con.compile(tables.transactions)
    return f"""
        SELECT e._row, t.order_id, min(t.transacted_at) AS ordered_at,
               coalesce(sum(t.amount) FILTER ({_in_scope(offer.scope)}), 0) AS paid,
               bool_or(coalesce(t.coupon_id = e.arm, false)) AS own
        FROM _exposures e JOIN ({lines}) t
          ON t.customer_id = e.customer_id AND t.transacted_at >= e.assigned_at
         AND t.transacted_at < e.assigned_at + INTERVAL {int(window)} DAY
        WHERE e.arm = {_quoted(offer.coupon_id)}
        GROUP BY e._row, t.order_id
        HAVING bool_or(t.amount >= 0 AND coalesce(t.quantity, 1) > 0) AND sum(t.amount) > 0
    """


def _in_scope(scope: Scope) -> str:
    if not scope.products and not scope.categories:
        return "true"
    parts = [
        f"coalesce(t.{column} IN ({', '.join(_quoted(name) for name in names)}), false)"
        for column, names in (("product_id", scope.products), ("category", scope.categories))
        if names
    ]
    return " OR ".join(parts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
