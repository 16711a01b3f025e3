"""Where a customer buys, and how they pay."""

from __future__ import annotations

import ibis.expr.types as ir

from features.grains import Facts
from features.registry import feature

OF_CHANNEL = ("transactions", "transactions.channel")


@feature(
    "online_order_share_365d",
    group="channel",
    of="orders",
    needs=OF_CHANNEL,
    doc="Share of orders in a channel of `features.online_channels`.",
)
def online_order_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.count(known & o.online), o.count(known))


@feature(
    "channel_favourite_365d",
    group="channel",
    of="channels_365d",
    dtype="text",
    core=True,
    needs=OF_CHANNEL,
    doc="Channel of most orders; ties: latest order, then alphabetical.",
)
def channel_favourite_365d(c: Facts) -> ir.Value:
    return c.favourite.max()


@feature(
    "mobile_payment_share_365d",
    group="channel",
    of="orders",
    needs=("transactions", "transactions.payment_method"),
    doc="Share of orders paid by a method of `features.mobile_payments` (移动支付).",
)
def mobile_payment_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.count(known & o.mobile), o.count(known))
