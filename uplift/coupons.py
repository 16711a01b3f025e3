"""The kinds of coupons: see docs/coupons.md. To add one, write its class here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from uplift.data import FloatArray
from uplift.kinds import (
    KINDS,
    CouponKind,
    Example,
    Line,
    Order,
    Param,
    WrongKey,
    coupon_kind,
    decimal,
    make_coupon,
    rounded,
)


def _by_product(order: Order) -> dict[object, tuple[Decimal, Decimal]]:
    """Product -> (units, list value of one); lines without a product stand for themselves."""
    totals: dict[object, tuple[Decimal, Decimal]] = {}
    for position, line in enumerate(order.purchases):
        key = position if line.product is None else line.product
        units, value = totals.get(key, (Decimal(0), Decimal(0)))
        totals[key] = units + decimal(line.quantity), value + decimal(line.list_value)
    return {key: (units, value / units) for key, (units, value) in totals.items()}


def _order(*lines: tuple[float, float, str] | float, **more: Any) -> Order:
    """Short form of an order for examples: list values, or (list value, quantity, product)."""
    return Order(
        tuple(Line(*line) if isinstance(line, tuple) else Line(line) for line in lines), **more
    )


@coupon_kind
class ThresholdOff(CouponKind):
    name = "threshold_off"
    title = "满减"
    rule = "off if V >= threshold; with repeat off x floor(V / threshold)"
    params = (
        Param("threshold", "number", "list value that earns the coupon", above=0, face="falling"),
        Param("off", "number", "currency off", above=0, face="rising"),
        Param(
            "repeat", "boolean", "off for every full threshold (每满)", default=False, face="rising"
        ),
        Param(
            "reward",
            "text",
            "next_order: the amount is granted, and costs when a later order uses it",
            default="now",
            choices=("now", "next_order"),
        ),
    )
    shows_as_discount = True
    examples = (
        Example({"threshold": 300, "off": 100}, _order(299.99), 0.0, "满300减100: V 299.99"),
        Example({"threshold": 300, "off": 100}, _order(330.0), 100.0, "满300减100: V 330"),
        Example(
            {"threshold": 300, "off": 100, "repeat": True},
            _order(650.0),
            200.0,
            "每满300减100: V 650",
        ),
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        if values["reward"] == "now" and values["off"] > values["threshold"]:
            expected = f"at most the threshold, {values['threshold']:g}"
            raise WrongKey("params.off", expected, f"{values['off']:g}")

    def granted(self, order: Order) -> float:
        """Currency that the order earns, now or for the next order."""
        times = order.list_value // self._number("threshold")
        if not self.values["repeat"]:
            times = min(times, Decimal(1))
        return float(rounded(times * self._number("off")))

    def cost(self, order: Order) -> Decimal:
        if self.values["reward"] == "next_order":
            return min(decimal(order.reward), order.list_value)
        return decimal(self.granted(order))

    @property
    def max_face_cost(self) -> float | None:
        return None if self.values["repeat"] else float(self.values["off"])


@coupon_kind
class PercentOff(CouponKind):
    name = "percent_off"
    title = "折扣"
    rule = "min(max_off, V x rate_off) if V >= min_spend; 7折 is rate_off 0.30"
    params = (
        Param("rate_off", "number", "share of the list value off", above=0, high=1, face="rising"),
        Param(
            "min_spend",
            "number",
            "list value that earns the coupon",
            default=0.0,
            low=0,
            face="falling",
        ),
        Param("max_off", "number", "currency off at most", default=None, above=0, face="rising"),
    )
    shows_as_discount = True
    examples = (
        Example({"rate_off": 0.30}, _order(200.0), 60.0, "7折: V 200"),
        Example({"rate_off": 0.30, "max_off": 50}, _order(200.0), 50.0, "7折, max_off 50: V 200"),
    )

    def cost(self, order: Order) -> Decimal:
        value = order.list_value
        if value < self._number("min_spend"):
            return Decimal(0)
        off = value * self._number("rate_off")
        return off if self.values["max_off"] is None else min(off, self._number("max_off"))

    @property
    def max_face_cost(self) -> float | None:
        most = self.values["max_off"]
        return None if most is None else float(most)


@coupon_kind
class NthItem(CouponKind):
    name = "nth_item"
    title = "第二件半价"
    rule = (
        "per product floor(quantity / n) x unit price x rate_off; with same_product false, units "
        "by price descending, every nth is reduced"
    )
    params = (
        Param("n", "integer", "which unit is reduced", default=2, low=2, face="falling"),
        Param(
            "rate_off",
            "number",
            "share of its price off",
            default=0.5,
            above=0,
            high=1,
            face="rising",
        ),
        Param("same_product", "boolean", "units count per product", default=True),
    )
    shows_as_discount = True
    examples = (
        Example({}, _order((120.0, 3, "P1")), 20.0, "3 x 40 of one product"),
        Example(
            {"same_product": False},
            _order((50.0, 1, "P1"), (40.0, 1, "P2"), (30.0, 1, "P3"), (20.0, 1, "P4")),
            30.0,
            "any products: 50, 40, 30, 20",
        ),
    )

    def cost(self, order: Order) -> Decimal:
        n, rate = int(self.values["n"]), self._number("rate_off")
        if self.values["same_product"]:
            stock = _by_product(order)
            reduced = sum((units // n * price for units, price in stock.values()), Decimal(0))
            return reduced * rate
        prices = [
            decimal(line.list_value) / decimal(line.quantity)
            for line in order.purchases
            for _ in range(int(line.quantity))
        ]
        return sum(sorted(prices, reverse=True)[n - 1 :: n], Decimal(0)) * rate


@coupon_kind
class FixedOff(CouponKind):
    name = "fixed_off"
    title = "无门槛"
    rule = "min(off, V)"
    params = (Param("off", "number", "currency off", above=0, face="rising"),)
    shows_as_discount = True
    examples = (
        Example({"off": 15}, _order(12.0), 12.0, "off 15: V 12"),
        Example({"off": 15}, _order(80.0), 15.0, "off 15: V 80"),
    )

    def cost(self, order: Order) -> Decimal:
        return min(self._number("off"), order.list_value)

    @property
    def max_face_cost(self) -> float | None:
        return float(self.values["off"])


@coupon_kind
class Points(CouponKind):
    name = "points"
    title = "积分"
    rule = (
        "(floor(paid x base_per_unit x (multiplier - 1)) + bonus) x point_value; expected "
        "x (1 - breakage)"
    )
    params = (
        Param(
            "base_per_unit",
            "number",
            "points per currency paid",
            default=1.0,
            low=0,
            face="rising",
        ),
        Param("multiplier", "number", "times the usual points", default=1.0, low=1, face="rising"),
        Param("bonus", "integer", "points on top", default=0, low=0, face="rising"),
        Param("point_value", "number", "currency a point is worth", above=0, face="rising"),
        Param(
            "breakage",
            "number",
            "share of points never used",
            default=0.0,
            low=0,
            high=1,
            face="falling",
        ),
    )
    shows_as_discount = False
    examples = (
        Example(
            {"base_per_unit": 1, "multiplier": 2, "point_value": 0.01},
            _order(250.0, paid=250.0),
            2.50,
            "paid 250, base 1, x 2, point 0.01",
        ),
    )

    def cost(self, order: Order) -> Decimal:
        paid = order.list_value if order.paid is None else max(decimal(order.paid), Decimal(0))
        extra = paid * self._number("base_per_unit") * (self._number("multiplier") - 1)
        return (extra // 1 + self._number("bonus")) * self._number("point_value")

    @property
    def claimed(self) -> Decimal:
        return 1 - self._number("breakage")

    def expected_on(self, paid: FloatArray) -> FloatArray:
        """(n,) what `expected_face_cost` says of orders on which so much was paid, currency."""
        rate = float(self._number("base_per_unit") * (self._number("multiplier") - 1))
        # Amounts are cents: what is left of a whole point after six digits is a float's noise.
        extra = np.floor(np.round(np.maximum(paid, 0.0) * rate, 6))
        value = float(self._number("point_value") * self.claimed)
        cents = np.round((extra + float(self._number("bonus"))) * value * 100.0, 6)
        out: FloatArray = np.floor(cents + 0.5) / 100.0
        return out

    @property
    def max_face_cost(self) -> float | None:
        if self.values["multiplier"] > 1 and self.values["base_per_unit"] > 0:
            return None
        return float(rounded(self._number("bonus") * self._number("point_value")))


@coupon_kind
class Gift(CouponKind):
    name = "gift"
    title = "赠品"
    rule = "unit_cost if V >= min_spend; what the gift costs, not its retail price"
    params = (
        Param("unit_cost", "number", "currency the gift costs", low=0, face="rising"),
        Param(
            "min_spend",
            "number",
            "list value that earns the gift",
            default=0.0,
            low=0,
            face="falling",
        ),
    )
    shows_as_discount = False
    examples = (
        Example({"unit_cost": 18, "min_spend": 100}, _order(120.0), 18.0, "18 from 100: V 120"),
        Example({"unit_cost": 18, "min_spend": 100}, _order(99.0), 0.0, "18 from 100: V 99"),
    )

    def cost(self, order: Order) -> Decimal:
        earned = bool(order.purchases) and order.list_value >= self._number("min_spend")
        return self._number("unit_cost") if earned else Decimal(0)

    @property
    def max_face_cost(self) -> float | None:
        return float(self.values["unit_cost"])


@coupon_kind
class Bundle(CouponKind):
    name = "bundle"
    title = "套餐"
    rule = "complete sets x max(0, list value of a set - price)"
    params = (
        Param("items", "list", "product ids of a set; one that stands twice is needed twice"),
        Param("price", "number", "price of a set", low=0, face="falling"),
    )
    shows_as_discount = True
    examples = (
        Example(
            {"items": ["P1", "P2"], "price": 168},
            _order((120.0, 1, "P1"), (89.0, 1, "P2")),
            41.0,
            "120 + 89 at 168",
        ),
    )

    def cost(self, order: Order) -> Decimal:
        stock = _by_product(order)
        items: Sequence[str] = self.values["items"]
        if any(item not in stock for item in items):
            return Decimal(0)
        sets = min(stock[item][0] // items.count(item) for item in items)
        listed = sum((stock[item][1] for item in items), Decimal(0))
        return sets * max(Decimal(0), listed - self._number("price"))


@coupon_kind
class FirstOrder(CouponKind):
    name = "first_order"
    title = "首单"
    rule = "cost of the inner coupon, only on the first valid order"
    params = (
        Param("kind", "text", "a kind that takes money off an order"),
        Param("params", "mapping", "its parameters"),
    )
    shows_as_discount = True
    examples = (
        Example(
            {"kind": "fixed_off", "params": {"off": 20}},
            _order(88.0, first=True),
            20.0,
            "off 20: V 88, first order",
        ),
        Example(
            {"kind": "fixed_off", "params": {"off": 20}}, _order(88.0), 0.0, "off 20: second order"
        ),
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        inner = KINDS.get(values["kind"])
        if inner is None or not inner.shows_as_discount or inner is FirstOrder:
            allowed = sorted(
                name
                for name, kind in KINDS.items()
                if kind.shows_as_discount and kind is not FirstOrder
            )
            # A gift or points on a first order would not stand in the order's discount.
            raise WrongKey("params.kind", f"one of {', '.join(allowed)}", repr(values["kind"]))
        try:
            self.inner = make_coupon(values["kind"], values["params"])
        except WrongKey as wrong:
            raise WrongKey(f"params.{wrong.key}", wrong.expected, wrong.found) from None
        super().__init__({"kind": values["kind"], "params": dict(self.inner.values)})

    def cost(self, order: Order) -> Decimal:
        return self.inner.cost(order) if order.first else Decimal(0)

    def costs_at_least(self, other: CouponKind) -> bool:
        return isinstance(other, FirstOrder) and self.inner.costs_at_least(other.inner)

    @property
    def max_face_cost(self) -> float | None:
        return self.inner.max_face_cost


@coupon_kind
class NonCash(CouponKind):
    name = "non_cash"
    title = "权益"
    rule = "unit_cost per use or grant"
    params = (
        Param("unit_cost", "number", "currency a use or a grant costs", low=0, face="rising"),
        Param("cost_on", "text", "when it is paid", default="use", choices=("use", "grant")),
    )
    shows_as_discount = False
    examples = (Example({"unit_cost": 30}, _order(), 30.0, "salon 30, used"),)

    def cost(self, order: Order) -> Decimal:
        return self._number("unit_cost") if order.used or self.certain else Decimal(0)

    @property
    def max_face_cost(self) -> float | None:
        return float(self.values["unit_cost"])

    @property
    def certain(self) -> bool:
        return bool(self.values["cost_on"] == "grant")


@coupon_kind
class Message(CouponKind):
    name = "message"
    title = "触达"
    rule = "0: a contact without a coupon costs the contact alone"
    shows_as_discount = False
    examples = (Example({}, _order(120.0), 0.0, "V 120"),)

    def cost(self, order: Order) -> Decimal:
        return Decimal(0)

    @property
    def max_face_cost(self) -> float | None:
        return 0.0
