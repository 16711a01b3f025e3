"""Everything that may forbid a coupon on an order, and several coupons on one, by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uplift.errors import OfferError
from uplift.kinds import KINDS, Line, Order
from uplift.offers import Offer, Scope, parse_offers
from uplift.redemption import NoCost, Redemption, Situation, redeem, redeem_together

GRANTED = datetime(2026, 3, 1, 12)
SITUATION = Situation(ordered_at=GRANTED + timedelta(days=3), granted_at=GRANTED)
BASKET = Order((Line(120.0, 2, "P1", "skincare"), Line(80.0, 1, "P2", "makeup")))


def coupon(kind: str = "fixed_off", params: dict[str, Any] | None = None, **keys: Any) -> Offer:
    spec = {"coupon_id": "c1", "kind": kind, "params": {"off": 10} if params is None else params}
    return parse_offers([spec | keys])[0]


def test_without_any_obstacle_the_kind_decides() -> None:
    assert redeem(coupon(), BASKET, SITUATION) == (10.0, None)


@pytest.mark.parametrize(
    ("keys", "change", "reason"),
    [
        ({"valid_days": 3}, {}, NoCost.EXPIRED),  # the end is exclusive
        ({"valid_until": "2026-03-04T12:00:00"}, {}, NoCost.EXPIRED),
        ({"valid_from": "2026-03-04T12:00:01"}, {}, NoCost.NOT_STARTED),
        ({"stock": 0}, {}, NoCost.OUT_OF_STOCK),
        ({}, {"eligible": False}, NoCost.NOT_ELIGIBLE),
        ({}, {"used": 1}, NoCost.CUSTOMER_LIMIT),
        ({"per_customer_limit": 2}, {"used": 2}, NoCost.CUSTOMER_LIMIT),
        ({"scope": {"products": ["P9"]}}, {}, NoCost.OUT_OF_SCOPE),
        ({"scope": {"categories": ["garden"]}}, {}, NoCost.OUT_OF_SCOPE),
        ({"kind": "threshold_off", "params": {"threshold": 201, "off": 9}}, {},
         NoCost.BELOW_THRESHOLD),
        ({"kind": "gift", "params": {"unit_cost": 9, "min_spend": 201}}, {},
         NoCost.BELOW_THRESHOLD),
    ],
)  # fmt: skip
def test_every_obstacle_costs_nothing_and_says_why(
    keys: dict[str, Any], change: dict[str, Any], reason: NoCost
) -> None:
    found = redeem(coupon(**keys), BASKET, replace(SITUATION, **change))
    assert found == Redemption(0.0, reason)


@pytest.mark.parametrize(
    ("keys", "change"),
    [
        ({"valid_days": 4}, {}),
        ({"valid_until": "2026-03-04T12:00:01Z"}, {}),
        ({"valid_until": "2026-03-04T14:00:01+02:00"}, {}),  # the same moment elsewhere
        ({"valid_from": "2026-03-04T12:00:00"}, {}),
        ({"stock": 1}, {}),
        ({"per_customer_limit": 2}, {"used": 1}),
    ],
)
def test_at_the_edge_it_is_still_allowed(keys: dict[str, Any], change: dict[str, Any]) -> None:
    assert redeem(coupon(**keys), BASKET, replace(SITUATION, **change)) == (10.0, None)


def test_a_message_costs_nothing_and_for_no_reason() -> None:
    assert redeem(coupon("message", {}), BASKET, SITUATION) == (0.0, None)


@pytest.mark.parametrize(
    ("scope", "cost"),
    [
        ({"products": ["P1"]}, 36.0),
        ({"categories": ["makeup"]}, 24.0),
        ({"products": ["P1"], "categories": ["makeup"]}, 60.0),
        ({}, 60.0),
    ],
)
def test_only_lines_in_scope_count(scope: dict[str, Any], cost: float) -> None:
    assert redeem(coupon("percent_off", {"rate_off": 0.3}, scope=scope), BASKET, SITUATION) == (
        cost, None
    )  # fmt: skip


def test_points_count_what_is_paid_within_the_scope() -> None:
    """Of 150 paid for 200, 60% lie in scope: 90 points more, a cent each."""
    points = {"base_per_unit": 1, "multiplier": 2, "point_value": 0.01}
    made = coupon("points", points, scope={"products": ["P1"]})
    assert redeem(made, replace(BASKET, paid=150.0), SITUATION) == (0.9, None)


class TestSeveral:
    def claims(self, *offers: Offer) -> list[tuple[Offer, Situation]]:
        return [(offer, SITUATION) for offer in offers]

    def test_each_applies_to_what_remains_by_priority(self) -> None:
        """200 less 20% is 160; 满160减30 is just earned; 无门槛 takes 10 more."""
        percent = coupon("percent_off", {"rate_off": 0.2}, stackable=True, priority=1)
        threshold = coupon(
            "threshold_off", {"threshold": 160, "off": 30}, stackable=True, priority=2
        )
        fixed = coupon(stackable=True, priority=3)
        made = redeem_together(self.claims(fixed, threshold, percent), BASKET)
        assert [r.cost for r in made] == [10.0, 30.0, 40.0]
        # The other way round 160 is not reached any more.
        late = replace(threshold, priority=4)
        made = redeem_together(self.claims(fixed, late, percent), BASKET)
        assert made[1] == (0.0, NoCost.BELOW_THRESHOLD)

    def test_what_remains_is_within_the_scope(self) -> None:
        """30% off P1 leaves 84 of it; then 10% of all is 0.1 x (84 + 80)."""
        first = coupon("percent_off", {"rate_off": 0.3}, stackable=True,
                       scope={"products": ["P1"]})  # fmt: skip
        second = coupon("percent_off", {"rate_off": 0.1}, stackable=True, priority=1)
        made = redeem_together(self.claims(first, second), BASKET)
        assert [r.cost for r in made] == [36.0, 16.4]

    def test_what_is_not_stackable_applies_alone(self) -> None:
        alone, beside = coupon(), coupon(stackable=True)
        made = redeem_together(self.claims(alone, beside), BASKET)
        assert made == ((10.0, None), (0.0, NoCost.NOT_STACKABLE))
        made = redeem_together(self.claims(beside, alone), BASKET)
        assert made == ((10.0, None), (0.0, NoCost.NOT_STACKABLE))
        # One that costs nothing stands in nobody's way.
        void = coupon("threshold_off", {"threshold": 999, "off": 9})
        made = redeem_together(self.claims(void, beside), BASKET)
        assert made == ((0.0, NoCost.BELOW_THRESHOLD), (10.0, None))

    def test_a_gift_takes_nothing_off_the_order(self) -> None:
        gift = coupon("gift", {"unit_cost": 7, "min_spend": 200}, stackable=True)
        whole = coupon("threshold_off", {"threshold": 200, "off": 50}, stackable=True, priority=1)
        made = redeem_together(self.claims(gift, whole), BASKET)
        assert [r.cost for r in made] == [7.0, 50.0]

    @given(
        values=st.lists(st.floats(0.01, 500).map(lambda v: round(v, 2)), min_size=1, max_size=4),
        offs=st.lists(st.floats(0.01, 300).map(lambda v: round(v, 2)), min_size=1, max_size=4),
        rate=st.floats(0.01, 1).map(lambda v: round(v, 2)),
    )
    def test_together_they_never_take_more_than_the_order(
        self, values: list[float], offs: list[float], rate: float
    ) -> None:
        order = Order(tuple(Line(value) for value in values))
        offers = [coupon(params={"off": off}, stackable=True) for off in offs]
        offers.append(coupon("percent_off", {"rate_off": rate}, stackable=True))
        total = sum(r.cost for r in redeem_together(self.claims(*offers), order))
        assert total <= float(order.list_value) + 0.005 * len(offers)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_is_contact_and_redemption_and_what_is_not_funded(kind: str) -> None:
    made = coupon(kind, dict(KINDS[kind].examples[0].params), contact_cost=0.1, funded_share=0.6)
    assert made.expected_cost(0.25, 8.0) == pytest.approx(0.1 + 0.25 * 8.0 * 0.6)


def test_what_is_paid_with_the_grant_is_certain() -> None:
    made = coupon("non_cash", {"unit_cost": 30, "cost_on": "grant"}, contact_cost=0.1)
    assert made.expected_cost(0.25, 30.0) == pytest.approx(30.1)


def test_offers_keep_what_they_say_and_no_more() -> None:
    plain = coupon()
    assert set(plain.spec()) == {
        "coupon_id", "kind", "params", "contact_cost", "active", "tags", "valid_days"
    }  # fmt: skip
    made = coupon(
        valid_from="2026-01-01T00:00:00Z", valid_until="2026-02-01T01:00:00+01:00", stock=5,
        per_customer_limit=2, channels=["sms"], eligible={"segment": "tier", "in": ["new"]},
        scope={"products": ["P1"]}, priority=3, funded_share=0.5, stackable=True,
    )  # fmt: skip
    again = parse_offers([made.spec()])[0]
    assert again == made
    assert hash(again) == hash(made)
    assert (again.valid_from, again.valid_until) == (datetime(2026, 1, 1), datetime(2026, 2, 1))
    assert again.scope == Scope(products=("P1",))
    assert made.offered_at(datetime(2026, 1, 1))
    assert not made.offered_at(datetime(2025, 12, 31, 23, 59, 59))
    assert not made.offered_at(datetime(2026, 2, 1))
    assert made.ends_at(datetime(2026, 1, 30)) == datetime(2026, 2, 1)
    assert made.ends_at(datetime(2026, 1, 3)) == datetime(2026, 1, 17)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"valid_until": "soon"}, "offer c1: valid_until: expected time or null, found 'soon'"),
        ({"valid_from": 3}, "valid_from: expected time or null, found 3"),
        ({"stock": -1}, "stock: expected integer >= 0 or null, found -1"),
        ({"scope": {"product": ["P1"]}}, r"scope\.product: expected one of products, categories"),
        ({"funded_share": 1.2}, "funded_share: expected number >= 0 and <= 1, found 1.2"),
        (
            {"valid_from": "2026-02-01", "valid_until": "2026-02-01"},
            "valid_until: expected a time after 2026-02-01",
        ),
    ],
)
def test_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(OfferError, match=message):
        coupon(**keys)
