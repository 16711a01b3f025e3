"""What a kind of coupon is: what it asks for as parameters, and what it costs on an order.

A kind is one registered class: it declares its parameters as data and computes its face cost. What
follows by itself: validation of the configuration, the tests of its worked examples, and its row
in docs/coupons.md. Amounts are currency, computed in decimals and rounded half up to 0.01.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

_CENT = Decimal("0.01")
_REQUIRED = object()


@dataclass(frozen=True)
class Line:
    """An order line within the coupon's scope. Lines that are no purchases (returns) count 0."""

    list_value: float
    """Currency, of the whole line, before this coupon."""
    quantity: float = 1.0
    product: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Order:
    """What a coupon's cost on an order depends on."""

    lines: tuple[Line, ...] = ()
    paid: float | None = None
    """Currency that the customer pays, where it differs from the list value (points)."""
    first: bool = False
    """Is it the customer's first valid order?"""
    reward: float = 0.0
    """Currency granted by an earlier order (threshold_off with reward: next_order), used here."""
    used: bool = True
    """Did the customer take up a benefit outside the order (non_cash)?"""

    @property
    def purchases(self) -> list[Line]:
        return [line for line in self.lines if line.list_value > 0 and line.quantity > 0]

    @property
    def list_value(self) -> Decimal:
        """List value of the purchase lines."""
        return sum((decimal(line.list_value) for line in self.purchases), Decimal(0))


@dataclass(frozen=True)
class Param:
    """A parameter of a coupon kind: its type, default and range."""

    name: str
    type: str
    """number, integer, boolean, text, list, mapping or time."""
    meaning: str
    default: Any = _REQUIRED
    above: float | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    face: str = ""
    """rising or falling: with it, what the coupon costs on any order never falls, or never rises.
    Without either the parameter orders nothing."""

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    @property
    def expected(self) -> str:
        """The range in words, for errors and documentation."""
        if self.choices:
            return " or ".join(self.choices)
        limits = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", self.above), (">=", self.low), ("<=", self.high))
            if bound is not None
        ]
        words = f"{self.type} {' and '.join(limits)}".strip()
        return f"{words} or null" if self.default is None else words

    def accepts(self, value: Any) -> bool:
        """Is the value of the declared type and within the range?"""
        if value is None:
            return self.default is None
        if self.type in ("number", "integer"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            if not math.isfinite(value) or (self.type == "integer" and value != int(value)):
                return False
            return (
                (self.above is None or value > self.above)
                and (self.low is None or value >= self.low)
                and (self.high is None or value <= self.high)
            )
        if self.type == "list":
            texts = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            return texts and (len(value) > 0 or not self.required)
        if self.type == "time":
            return isinstance(value, datetime) or (isinstance(value, str) and _is_time(value))
        expected = {"boolean": bool, "text": str, "mapping": Mapping}[self.type]
        return isinstance(value, expected) and (not self.choices or value in self.choices)

    def reaches(self, value: Any, other: Any) -> bool:
        """Does a coupon with this value cost no less, all else equal, than with the other?"""
        if value == other or not self.face:
            return bool(value == other)
        # No bound is the highest one.
        mine, theirs = (math.inf if v is None else v for v in (value, other))
        return bool(mine > theirs) if self.face == "rising" else bool(mine < theirs)

    def typed(self, value: Any) -> Any:
        """An accepted value in the one form that equal values share."""
        if value is None:
            return None
        if self.type == "list":
            return tuple(value)
        if self.type == "time" and isinstance(value, str):
            return datetime.fromisoformat(value)
        return {"number": float, "integer": int}.get(self.type, lambda same: same)(value)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Example:
    """A worked example: these parameters on this order cost that much."""

    params: Mapping[str, Any]
    order: Order
    cost: float
    text: str


class CouponKind(ABC):
    """What a kind of coupon asks for and costs; an instance holds one coupon's parameters."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The Chinese term of retail practice, for the documentation."""
    rule: ClassVar[str]
    """The face cost in words; V is the list value of the purchase lines."""
    params: ClassVar[tuple[Param, ...]] = ()
    shows_as_discount: ClassVar[bool]
    """Is the face cost taken off an order, so that it stands in the order's `discount`?"""
    examples: ClassVar[tuple[Example, ...]] = ()

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = MappingProxyType(dict(values))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CouponKind)
            and self.name == other.name
            and self.values == other.values
        )

    def __hash__(self) -> int:
        return hash((self.name, repr(sorted(self.values.items()))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.values)})"

    def face_cost(self, order: Order) -> float:
        """Currency that the coupon costs on the order when it is redeemed, to 0.01."""
        return float(rounded(self.cost(order)))

    def expected_face_cost(self, order: Order) -> float:
        """As face_cost, less what experience says is never claimed (breakage of points)."""
        return float(rounded(self.cost(order) * self.claimed))

    @property
    def claimed(self) -> Decimal:
        """Share of the face cost that experience says is claimed."""
        return Decimal(1)

    def costs_at_least(self, other: CouponKind) -> bool:
        """Does it cost at least what the other does on every order, as both parameters tell? Only
        coupons of one kind are compared."""
        return self.name == other.name and all(
            param.reaches(self.values[param.name], other.values[param.name])
            for param in self.params
        )

    @property
    def max_face_cost(self) -> float | None:
        """Upper bound of the face cost, currency; None when there is none."""
        return None

    @property
    def certain(self) -> bool:
        """Is the cost paid with the grant, whoever redeems?"""
        return False

    @abstractmethod
    def cost(self, order: Order) -> Decimal:
        """Unrounded face cost on an order."""

    def _number(self, name: str) -> Decimal:
        return decimal(self.values[name])


class WrongKey(Exception):
    """A key that is wrong; becomes an OfferError where the coupon's id is known."""

    def __init__(self, key: str, expected: str, found: str) -> None:
        self.key, self.expected, self.found = key, expected, found
        super().__init__(key)


_Kind = TypeVar("_Kind", bound=type[CouponKind])
KINDS: dict[str, type[CouponKind]] = {}


def coupon_kind(cls: _Kind) -> _Kind:
    """Register a coupon kind under its name."""
    if cls.name in KINDS:
        raise ValueError(f"coupon kind {cls.name} is registered twice")
    KINDS[cls.name] = cls
    return cls


def make_coupon(kind: str, params: Mapping[str, Any]) -> CouponKind:
    """A coupon of a registered kind; WrongKey when the kind or a parameter is wrong."""
    if kind not in KINDS:
        raise WrongKey("kind", f"one of {', '.join(sorted(KINDS))}", repr(kind))
    return KINDS[kind](filled(KINDS[kind].params, params, "params."))


def filled(known: Sequence[Param], given: Mapping[str, Any], within: str) -> dict[str, Any]:
    """The given values with defaults, all of their declared types."""
    names = [param.name for param in known]
    for key in given:
        if key not in names:
            expected = f"one of {', '.join(names)}" if names else "no parameters"
            raise WrongKey(f"{within}{key}", expected, "an unknown key")
    values: dict[str, Any] = {}
    for param in known:
        if param.name not in given and param.required:
            raise WrongKey(f"{within}{param.name}", param.expected, "nothing")
        value = given.get(param.name, param.default)
        if not param.accepts(value):
            raise WrongKey(f"{within}{param.name}", param.expected, repr(value))
        values[param.name] = param.typed(value)
    return values


def decimal(value: Any) -> Decimal:
    """The decimal number that a float is written as."""
    # Through the shortest text of the float: 0.1 means one tenth, and 299.99 + 0.01 is 300.
    return Decimal(repr(float(value))) if isinstance(value, float) else Decimal(str(value))


def rounded(value: Decimal) -> Decimal:
    """Half up to 0.01."""
    return value.quantize(_CENT, rounding=ROUND_HALF_UP)
