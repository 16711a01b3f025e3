"""What a coupon costs on an order when everything that may forbid it is looked at.

A kind knows what it costs on an order that earns it (`uplift.coupons`). Here come the validity,
the stock, the customer's limit and eligibility, the scope, and several coupons on one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from uplift.kinds import Line, Order, decimal, rounded
from uplift.offers import Offer


class NoCost(StrEnum):
    """Why a coupon costs nothing on an order; the first that holds."""

    NOT_STARTED = "coupon_not_started"
    EXPIRED = "coupon_expired"
    OUT_OF_STOCK = "coupon_out_of_stock"
    NOT_ELIGIBLE = "not_eligible"
    CUSTOMER_LIMIT = "customer_limit"
    NOT_STACKABLE = "not_stackable"
    OUT_OF_SCOPE = "out_of_scope"
    BELOW_THRESHOLD = "below_threshold"


@dataclass(frozen=True)
class Situation:
    """What is known of a coupon and a customer when an order is paid. Times in UTC, naive."""

    ordered_at: datetime
    granted_at: datetime
    used: int = 0
    """Orders on which the customer has used this piece already."""
    eligible: bool = True


class Redemption(NamedTuple):
    """Face cost in currency, to 0.01, and the reason where it is 0."""

    cost: float
    reason: NoCost | None


def redeem(offer: Offer, order: Order, situation: Situation) -> Redemption:
    """What one coupon costs on an order. A message costs nothing, and for no reason."""
    refused = _refusal(offer, situation)
    return Redemption(0.0, refused) if refused else _on(offer, order)


def redeem_together(
    claims: Sequence[tuple[Offer, Situation]], order: Order
) -> tuple[Redemption, ...]:
    """What each of several coupons costs on one order, in the order of the claims.

    They are applied by priority, equal ones as given, each on what those before it have left of the
    list value of the lines in its scope. One that is not stackable applies alone.
    """
    found: dict[int, Redemption] = {}
    applied = alone = False
    for at in sorted(range(len(claims)), key=lambda i: claims[i][0].priority):
        offer, situation = claims[at]
        refused = _refusal(offer, situation)
        if refused is None and (alone or (applied and not offer.stackable)):
            refused = NoCost.NOT_STACKABLE
        found[at] = Redemption(0.0, refused) if refused else _on(offer, order)
        if found[at].reason is None:
            applied, alone = True, not offer.stackable
            if offer.shows_as_discount:
                order = _less(order, offer, found[at].cost)
    return tuple(found[at] for at in range(len(claims)))


def _refusal(offer: Offer, situation: Situation) -> NoCost | None:
    if offer.valid_from is not None and situation.ordered_at < offer.valid_from:
        return NoCost.NOT_STARTED
    if situation.ordered_at >= offer.ends_at(situation.granted_at):
        return NoCost.EXPIRED
    if offer.stock == 0:
        return NoCost.OUT_OF_STOCK
    if not situation.eligible:
        return NoCost.NOT_ELIGIBLE
    return NoCost.CUSTOMER_LIMIT if situation.used >= offer.per_customer_limit else None


def _on(offer: Offer, order: Order) -> Redemption:
    within = tuple(line for line in order.lines if offer.scope.holds(line))
    seen = replace(order, lines=within)
    if order.purchases and not seen.purchases:
        return Redemption(0.0, NoCost.OUT_OF_SCOPE)
    if order.paid is not None and seen.list_value < order.list_value:
        # Points count what is paid within the scope: its share of the list value.
        paid = decimal(order.paid) * seen.list_value / order.list_value
        seen = replace(seen, paid=float(rounded(paid)))
    cost = offer.face_cost(seen)
    free = cost == 0.0 and offer.max_face_cost != 0.0
    return Redemption(cost, NoCost.BELOW_THRESHOLD if free else None)


def _less(order: Order, offer: Offer, cost: float) -> Order:
    """The order with its lines in scope reduced by the cost, in proportion to their list value."""
    reached = [
        offer.scope.holds(line) and line.list_value > 0 and line.quantity > 0
        for line in order.lines
    ]
    total = sum(
        (decimal(line.list_value) for line, mine in zip(order.lines, reached, strict=True) if mine),
        Decimal(0),
    )
    if total <= 0:
        return order
    kept = 1 - decimal(cost) / total

    def left(line: Line) -> Line:
        return replace(line, list_value=float(decimal(line.list_value) * kept))

    lines = tuple(
        left(line) if mine else line for line, mine in zip(order.lines, reached, strict=True)
    )
    paid = (
        None if order.paid is None else float(max(Decimal(0), decimal(order.paid) - decimal(cost)))
    )
    return replace(order, lines=lines, paid=paid)
