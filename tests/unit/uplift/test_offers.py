"""Coupon costs on orders computed by hand, and offers that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from uplift.coupons import Points, ThresholdOff
from uplift.errors import OfferError
from uplift.kinds import KINDS, Line, Order, coupon_kind
from uplift.offers import Offer, ladder, parse_offers


def coupon(kind: str, /, **params: Any) -> Offer:
    return parse_offers([{"coupon_id": "c1", "kind": kind, "params": params}])[0]


def order(*lines: Any, **more: Any) -> Order:
    return Order(tuple(Line(*line) if isinstance(line, tuple) else Line(line) for line in lines),
                 **more)  # fmt: skip


THRESHOLD = {"threshold": 300, "off": 100}
NTH_ANY = {"same_product": False}
POINTS = {"base_per_unit": 1, "multiplier": 2, "point_value": 0.01}
SET = {"items": ["A", "B"], "price": 168}
FIRST = {"kind": "fixed_off", "params": {"off": 20}}


@pytest.mark.parametrize(
    ("kind", "params", "given", "cost"),
    [
        ("threshold_off", THRESHOLD, order(299.99), 0),
        ("threshold_off", THRESHOLD, order(330.0), 100),
        ("threshold_off", THRESHOLD, order(650.0), 100),
        ("threshold_off", {**THRESHOLD, "repeat": True}, order(650.0), 200),
        # The sum of these floats is 299.99999999999994; the money is 300.
        ("threshold_off", THRESHOLD, order(*[33.3] * 9, 0.3), 100),
        ("threshold_off", THRESHOLD, order(*[100.1] * 2, 99.8), 100),
        ("threshold_off", {**THRESHOLD, "reward": "next_order"}, order(330.0), 0),
        ("threshold_off", {**THRESHOLD, "reward": "next_order"}, order(60.0, reward=100.0), 60),
        ("threshold_off", {**THRESHOLD, "reward": "next_order"}, order(160.0, reward=100.0), 100),
        ("percent_off", {"rate_off": 0.30}, order(200.0), 60),
        ("percent_off", {"rate_off": 0.30, "max_off": 50}, order(200.0), 50),
        ("percent_off", {"rate_off": 0.10, "min_spend": 30}, order(29.99), 0),
        ("percent_off", {"rate_off": 0.10, "min_spend": 30}, order(30.0), 3),
        # Half a cent goes up, also where the float lies below it.
        ("percent_off", {"rate_off": 0.15}, order(19.9), 2.99),
        ("percent_off", {"rate_off": 0.5}, order(2.01), 1.01),
        ("nth_item", {}, order((120.0, 3, "A")), 20),
        ("nth_item", {}, order((40.0, 1, "A"), (40.0, 1, "A"), (40.0, 1, "A")), 20),
        ("nth_item", {}, order((40.0, 1, "A"), (40.0, 1, "B")), 0),
        ("nth_item", {}, order(40.0, 40.0), 0),
        ("nth_item", {"n": 3, "rate_off": 1}, order((90.0, 6, "A")), 30),
        ("nth_item", NTH_ANY, order((30.0, 1, "C"), (50.0, 1, "A"), (20.0, 1, "D"), (40.0, 1)), 30),
        ("nth_item", NTH_ANY, order((100.0, 2, "A"), (30.0, 1, "B")), 25),
        ("fixed_off", {"off": 15}, order(12.0), 12),
        ("fixed_off", {"off": 15}, order(80.0), 15),
        ("fixed_off", {"off": 15}, order(20.0, -80.0), 15),
        ("points", POINTS, order(300.0, paid=250.0), 2.5),
        ("points", POINTS, order(250.99), 2.5),
        ("points", {**POINTS, "bonus": 50}, order(paid=250.0), 3),
        ("points", {"bonus": 300, "point_value": 0.01}, order(10.0), 3),
        ("gift", {"unit_cost": 18, "min_spend": 100}, order(120.0), 18),
        ("gift", {"unit_cost": 18, "min_spend": 100}, order(99.0), 0),
        ("gift", {"unit_cost": 18}, order(), 0),
        ("bundle", SET, order((120.0, 1, "A"), (89.0, 1, "B")), 41),
        ("bundle", SET, order((240.0, 2, "A"), (178.0, 2, "B"), (5.0, 1, "C")), 82),
        ("bundle", SET, order((240.0, 2, "A"), (89.0, 1, "B")), 41),
        ("bundle", SET, order((120.0, 1, "A")), 0),
        ("bundle", {**SET, "price": 500}, order((120.0, 1, "A"), (89.0, 1, "B")), 0),
        ("bundle", {"items": ["A", "A"], "price": 60}, order((120.0, 3, "A")), 20),
        ("first_order", FIRST, order(88.0, first=True), 20),
        ("first_order", FIRST, order(88.0), 0),
        ("non_cash", {"unit_cost": 30}, order(), 30),
        ("non_cash", {"unit_cost": 30}, order(used=False), 0),
        ("non_cash", {"unit_cost": 30, "cost_on": "grant"}, order(used=False), 30),
        ("message", {}, order(100.0), 0),
    ],
)
def test_face_cost(kind: str, params: dict[str, Any], given: Order, cost: float) -> None:
    assert coupon(kind, **params).face_cost(given) == cost


def test_the_discounts_of_the_worked_customers() -> None:
    """customer a3, a6, b2 and c1 of the rules' fixture: computed cost = observed discount."""
    observed = [
        (coupon("percent_off", rate_off=0.20), order((300.0, 1, "P1")), 60),
        (coupon("nth_item"), order((200.0, 2, "P1")), 50),
        (coupon("threshold_off", threshold=199, off=50), order((210.0, 2, "P1")), 50),
        (coupon("first_order", **FIRST), order((88.0, 1, "P4"), first=True), 20),
    ]
    for made, given, discount in observed:
        assert made.face_cost(given) == discount


def test_breakage_lowers_what_points_are_expected_to_cost() -> None:
    made = coupon("points", **POINTS, breakage=0.2).coupon
    assert made.face_cost(order(250.0)) == 2.5
    assert made.expected_face_cost(order(250.0)) == 2.0
    assert coupon("fixed_off", off=5).coupon.expected_face_cost(order(9.0)) == 5


def test_points_of_many_orders_are_those_of_each() -> None:
    rng = np.random.default_rng(4)
    paid = np.append(rng.integers(1, 100_000, 300) / 100, [0.0, -3.0, 10.0, 29.99, 30.0])
    for multiplier, base, value, breakage in (
        (1.1, 1, 0.01, 0.3),
        (1.7, 0.1, 0.005, 0),
        (3, 7, 0.02, 0.15),
    ):
        made = coupon("points", multiplier=multiplier, base_per_unit=base, point_value=value,
                      bonus=7, breakage=breakage).coupon  # fmt: skip
        assert isinstance(made, Points)
        each = [made.expected_face_cost(Order(paid=amount)) for amount in paid.tolist()]
        assert made.expected_on(paid).tolist() == each


def test_which_kinds_stand_in_the_discount_of_an_order() -> None:
    assert {name for name, kind in KINDS.items() if kind.shows_as_discount} == {
        "threshold_off", "percent_off", "nth_item", "fixed_off", "bundle", "first_order"
    }  # fmt: skip
    assert set(KINDS) == {
        "threshold_off", "percent_off", "nth_item", "fixed_off", "points", "gift", "bundle",
        "first_order", "non_cash", "message",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "params", "most"),
    [
        ("threshold_off", THRESHOLD, 100),
        ("threshold_off", {**THRESHOLD, "repeat": True}, None),
        ("percent_off", {"rate_off": 0.3}, None),
        ("percent_off", {"rate_off": 0.3, "max_off": 50}, 50),
        ("nth_item", {}, None),
        ("fixed_off", {"off": 15}, 15),
        ("points", POINTS, None),
        ("points", {"bonus": 300, "point_value": 0.01}, 3),
        ("gift", {"unit_cost": 18}, 18),
        ("bundle", SET, None),
        ("first_order", FIRST, 20),
        ("first_order", {"kind": "percent_off", "params": {"rate_off": 0.3}}, None),
        ("non_cash", {"unit_cost": 30}, 30),
        ("message", {}, 0),
    ],
)
def test_what_a_coupon_costs_at_most(kind: str, params: dict[str, Any], most: float | None) -> None:
    assert coupon(kind, **params).max_face_cost == most


def test_only_a_grant_is_certain() -> None:
    assert coupon("non_cash", unit_cost=30, cost_on="grant").coupon.certain
    assert not coupon("non_cash", unit_cost=30).coupon.certain
    assert not coupon("fixed_off", off=3).coupon.certain


def test_what_an_order_earns_for_the_next() -> None:
    made = coupon("threshold_off", threshold=100, off=20, reward="next_order", repeat=True).coupon
    assert isinstance(made, ThresholdOff)
    assert made.granted(order(250.0)) == 40
    assert made.granted(order(99.0)) == 0


def test_numbers_of_arrays_are_numbers() -> None:
    line = Line(np.float64(19.9), np.int64(2))  # type: ignore[arg-type]
    assert coupon("percent_off", rate_off=np.float64(0.15)).face_cost(Order((line,))) == 2.99


def test_offers_keep_their_order_and_defaults() -> None:
    first, second = parse_offers(
        [
            {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5}, "contact_cost": 0.02},
            {"coupon_id": "m", "kind": "message", "active": False, "tags": ["mail"],
             "valid_days": 7},
        ]
    )  # fmt: skip
    assert (first.coupon_id, first.kind, dict(first.params)) == ("c5", "fixed_off", {"off": 5.0})
    assert (first.contact_cost, first.active, first.tags, first.valid_days) == (0.02, True, (), 14)
    assert (second.active, second.tags, second.valid_days) == (False, ("mail",), 7)
    assert parse_offers([]) == ()


FIXED = {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5}}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{**FIXED, "kind": "cashback"}], r"offer c5: kind: expected one of bundle, .*'cashback'"),
        ([{**FIXED, "colour": 1}], "offer c5: colour: expected one of coupon_id, .*unknown key"),
        ([{**FIXED, "params": {}}], r"offer c5: params\.off: expected number > 0, found nothing"),
        ([{**FIXED, "params": {"off": 0}}], r"params\.off: expected number > 0, found 0\. Mend it"),
        ([{**FIXED, "params": {"off": True}}], r"params\.off: expected number > 0, found True"),
        ([{**FIXED, "params": {"off": float("nan")}}], r"params\.off: .* found nan"),
        ([{**FIXED, "params": None}], "offer c5: params: expected mapping, found None"),
        ([{**FIXED, "contact_cost": -1}], "contact_cost: expected number >= 0, found -1"),
        ([{**FIXED, "active": "no"}], "active: expected boolean, found 'no'"),
        ([{**FIXED, "tags": "vip"}], "tags: expected list, found 'vip'"),
        ([{**FIXED, "valid_days": 1.5}], "valid_days: expected integer >= 1, found 1.5"),
        ([{**FIXED, "coupon_id": "control"}], "an id other than control, which means no coupon"),
        ([{**FIXED, "coupon_id": ""}], "offer no. 1: coupon_id: expected an id other"),
        ([FIXED, FIXED], "offer c5: coupon_id: expected an id that stands once, found 'c5' twice"),
        ([{"kind": "message"}], "offer no. 1: coupon_id: expected text, found nothing"),
        (["c5"], "offer no. 1: the offer: expected a mapping of keys, found str"),
        (
            [{**FIXED, "kind": "threshold_off", "params": {"threshold": 100, "off": 300}}],
            r"params\.off: expected at most the threshold, 100, found 300",
        ),
        (
            [{**FIXED, "kind": "threshold_off", "params": {**THRESHOLD, "reward": "later"}}],
            r"params\.reward: expected now or next_order, found 'later'",
        ),
        (
            [{**FIXED, "kind": "bundle", "params": {"items": [], "price": 3}}],
            r"params\.items: expected list, found \[\]",
        ),
        (
            [{**FIXED, "kind": "first_order", "params": {"kind": "gift", "params": {}}}],
            r"params\.kind: expected one of bundle, fixed_off, .* found 'gift'",
        ),
        (
            [{**FIXED, "kind": "first_order", "params": {"kind": "fixed_off", "params": {}}}],
            r"params\.params\.off: expected number > 0, found nothing",
        ),
    ],
)
def test_refuses(specs: list[Any], message: str) -> None:
    with pytest.raises(OfferError, match=message):
        parse_offers(specs)


@pytest.mark.parametrize(
    ("less", "more", "ordered"),
    [
        ({}, {"params": {"off": 10}}, True),
        ({}, {"params": {"off": 10}, "contact_cost": 0.1, "valid_days": 30}, True),
        ({}, {}, False),  # the same coupon
        ({"contact_cost": 0.1}, {"params": {"off": 10}}, False),
        ({"valid_days": 30}, {"params": {"off": 10}}, False),
        ({}, {"params": {"off": 10}, "funded_share": 0.5}, False),
        ({}, {"params": {"off": 10}, "scope": {"products": ["P1"]}}, False),
        ({}, {"params": {"off": 10}, "channels": ["sms"]}, False),
        ({}, {"kind": "threshold_off", "params": {"threshold": 20, "off": 10}}, False),
        ({"kind": "message", "params": {}}, {}, False),
        ({"kind": "percent_off", "params": {"rate_off": 0.1, "max_off": 9}},
         {"kind": "percent_off", "params": {"rate_off": 0.1}}, True),
        ({"kind": "percent_off", "params": {"rate_off": 0.1}},
         {"kind": "percent_off", "params": {"rate_off": 0.2, "max_off": 9}}, False),
        ({"kind": "first_order", "params": {"kind": "fixed_off", "params": {"off": 5}}},
         {"kind": "first_order", "params": FIRST}, True),
        ({"kind": "bundle", "params": SET},
         {"kind": "bundle", "params": {"items": ["A"], "price": 10}}, False),
    ],
)  # fmt: skip
def test_which_coupon_is_the_other_with_a_higher_face_value(
    less: dict[str, Any], more: dict[str, Any], ordered: bool
) -> None:
    made = parse_offers([{**FIXED, **less}, {**FIXED, "coupon_id": "c10", **more}])
    assert ladder(made).tolist() == [[False, False], [ordered, False]]


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="threshold_off is registered twice"):
        coupon_kind(ThresholdOff)
