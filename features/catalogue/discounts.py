"""How much a customer depends on discounts, and on which coupons."""

from __future__ import annotations

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.orders import kind_bits
from features.registry import feature

OF_COUPON = ("transactions", "offers", "transactions.coupon_id")
DEEP = 0.30
BILLION = 1_000_000_000


@feature(
    "discount_rate_365d",
    group="discount",
    of="orders",
    core=True,
    doc="Sum of discount ÷ sum of list value (amount + discount).",
)
def discount_rate_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.total(o.discount, known), o.total(o.paid + o.discount, known))


@feature(
    "discounted_order_share_365d",
    group="discount",
    of="orders",
    core=True,
    doc="Share of orders with a discount.",
)
def discounted_order_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.count(known & (o.discount > 0)), o.count(known))


@feature(
    "discount_depth_mean_365d",
    group="discount",
    of="orders",
    doc="Mean of discount ÷ list value over orders with a discount.",
)
def discount_depth_mean_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365) & (o.discount > 0)
    # Whole numbers, so that the sum is the same in any order of rows.
    depth = (o.discount / (o.paid + o.discount).nullif(0.0) * BILLION * 1000).round()
    return o.ratio(o.total(depth.cast("int64"), known), o.count(known)) / (BILLION * 1000)


@feature(
    "full_price_orders_365d",
    group="discount",
    of="orders",
    dtype="int",
    none=0,
    doc="Orders without any discount.",
)
def full_price_orders_365d(o: Facts) -> ir.Value:
    return o.count(o.valid & o.within(365) & (o.discount == 0))


@feature(
    "threshold_hugging_share_365d",
    group="discount",
    of="orders",
    needs=OF_COUPON,
    doc="Of orders that bear a threshold_off coupon (满减): list value ≤ 1.1 × threshold (凑单).",
)
def threshold_hugging_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365) & o.threshold.notnull()
    # Times ten: 1.1 is no number of the machine, and the equality counts.
    near = 10 * (o.paid + o.discount) <= 11 * o.threshold
    return o.ratio(o.count(known & near), o.count(known))


@feature(
    "price_sensitivity_score",
    group="discount",
    of="features",
    uses=("discounted_order_share_365d", "discount_rate_365d"),
    doc="(discounted_order_share_365d + min(1, discount_rate_365d ÷ 0.30)) ÷ 2.",
)
def price_sensitivity_score(f: Facts) -> ir.Value:
    rate = f.discount_rate_365d / DEEP
    return (f.discounted_order_share_365d + ibis.ifelse(rate > 1.0, 1.0, rate)) / 2


KINDS = {
    "threshold_off": "满减",
    "percent_off": "折扣",
    "nth_item": "第二件半价",
    "points": "积分",
    "gift": "赠品",
    "fixed_off": "无门槛",
}


def _share_of(kind: str) -> Callable[[Facts], ir.Value]:
    def share(o: Facts) -> ir.Value:
        known = o.valid & o.within(365) & (o.kinds != 0)
        bit = kind_bits(o.config).get(kind, 0)
        return o.ratio(o.count(known & ((o.kinds & bit) != 0)), o.count(known))

    return share


for _kind, _name in KINDS.items():
    feature(
        f"kind_share_{_kind}_365d",
        group="kind",
        of="orders",
        needs=OF_COUPON,
        doc=f"Share of {_kind} ({_name}) of orders that carry a coupon of `offers`.",
    )(_share_of(_kind))


@feature(
    "kind_favourite_365d",
    group="kind",
    of="orders",
    dtype="text",
    core=True,
    needs=OF_COUPON,
    doc="Coupon kind in most orders that carry a coupon of `offers`; ties: latest order, "
    "then alphabetical.",
)
def kind_favourite_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.most_frequent(
        {k: known & ((o.kinds & bit) != 0) for k, bit in kind_bits(o.config).items()}
    )
