"""Offers: the arms besides control, read from a configuration and checked.

Every error names the coupon, the key, what was expected and found, and the remedy. The kinds of
coupons and their costs are in `uplift.coupons`, their common ground in `uplift.kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import numpy as np

import uplift.coupons  # noqa: F401  (fills the registry)
from uplift.data import BoolArray
from uplift.errors import OfferError
from uplift.kinds import (
    KINDS,
    CouponKind,
    Line,
    Order,
    Param,
    WrongKey,
    filled,
    make_coupon,
)

CONTROL = "control"


@dataclass(frozen=True)
class Scope:
    """The order lines that a coupon counts and reduces: of these products or of these categories;
    without either, all."""

    products: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def holds(self, line: Line) -> bool:
        if not self.products and not self.categories:
            return True
        return line.product in self.products or line.category in self.categories


@dataclass(frozen=True)
class Offer:
    """An arm besides control: a coupon and the contact that brings it."""

    coupon_id: str
    coupon: CouponKind
    contact_cost: float = 0.0
    """Currency per contact, whoever redeems."""
    active: bool = True
    """False: a retired coupon, known to training and out of decisions."""
    tags: tuple[str, ...] = ()
    valid_days: int = 14
    """Days after assignment in which it is valid, but for `valid_until`."""
    valid_from: datetime | None = None
    """UTC, naive. Before it the coupon is not offered."""
    valid_until: datetime | None = None
    """UTC, naive, exclusive."""
    stock: int | None = None
    """Pieces that may still be offered; None: no limit."""
    per_customer_limit: int = 1
    """Orders on which a customer may use one piece."""
    channels: tuple[str, ...] = ()
    """Channels that may bring it; none: any."""
    eligible: Mapping[str, Any] | None = field(default=None, hash=False)
    """A filter of the audience language, which is none of this package's business."""
    scope: Scope = Scope()
    priority: int = 0
    """Of stacked coupons the lower number is applied first."""
    funded_share: float = 1.0
    """Share of the face cost that we bear."""
    stackable: bool = False

    def offered_at(self, moment: datetime) -> bool:
        """May it be sent at a moment (UTC; aware or naive)? The end is exclusive."""
        now = _naive(moment)
        after = self.valid_from is None or self.valid_from <= now
        return after and (self.valid_until is None or now < self.valid_until)

    def ends_at(self, granted: datetime) -> datetime:
        """When a piece that is granted at a moment (naive UTC) loses its validity."""
        end = granted + timedelta(days=self.valid_days)
        return end if self.valid_until is None else min(end, self.valid_until)

    @property
    def kind(self) -> str:
        return self.coupon.name

    @property
    def params(self) -> Mapping[str, Any]:
        """All parameters of the kind, defaults included."""
        return self.coupon.values

    @property
    def shows_as_discount(self) -> bool:
        return self.coupon.shows_as_discount

    @property
    def max_face_cost(self) -> float | None:
        return self.coupon.max_face_cost

    def face_cost(self, order: Order) -> float:
        """Currency that redeeming it on the order costs by its kind; its scope, validity, limits
        and who bears it are the business of `uplift.redemption`."""
        return self.coupon.face_cost(order)

    def expected_cost(self, redemption: float, face_cost: float) -> float:
        """Currency: contact + P(redeem | customer, arm) x expected face cost x funded share.

        redemption: the rate of those who are offered it, not an uplift, so that who would have
        bought anyway counts. What is paid with the grant is certain.
        """
        rate = 1.0 if self.coupon.certain else redemption
        return self.contact_cost + rate * face_cost * self.funded_share

    def costs_at_least(self, other: Offer) -> bool:
        """Is it the other offer with a higher face value: of the same kind, scope, channels, dates
        and rules of stacking, and with no parameter, contact, share or validity below it?"""
        same = ("scope", "channels", "valid_from", "valid_until", "priority", "stackable")
        more = ("contact_cost", "funded_share", "valid_days", "per_customer_limit")
        return (
            all(getattr(self, key) == getattr(other, key) for key in same)
            and all(getattr(self, key) >= getattr(other, key) for key in more)
            and self.coupon != other.coupon
            and self.coupon.costs_at_least(other.coupon)
        )

    def spec(self) -> dict[str, Any]:
        """What `parse_offers` reads back to an equal offer; plain JSON. Keys that came later stand
        there only where they say something, so that older offers keep their form."""
        later: dict[str, Any] = {
            "valid_from": None if self.valid_from is None else self.valid_from.isoformat(),
            "valid_until": None if self.valid_until is None else self.valid_until.isoformat(),
            "stock": self.stock,
            "per_customer_limit": self.per_customer_limit,
            "channels": list(self.channels),
            "eligible": None if self.eligible is None else dict(self.eligible),
            "scope": {k: list(v) for k, v in vars(self.scope).items()},
            "priority": self.priority,
            "funded_share": self.funded_share,
            "stackable": self.stackable,
        }
        return {
            "coupon_id": self.coupon_id,
            "kind": self.kind,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in self.params.items()},
            "contact_cost": self.contact_cost,
            "active": self.active,
            "tags": list(self.tags),
            "valid_days": self.valid_days,
            **{key: value for key, value in later.items() if getattr(self, key) != _PLAIN[key]},
        }


_FIELDS = (
    Param("coupon_id", "text", "name of the arm"),
    Param("kind", "text", "a coupon kind"),
    Param("params", "mapping", "parameters of the kind", default=MappingProxyType({})),
    Param("contact_cost", "number", "currency per contact", default=0.0, low=0),
    Param("active", "boolean", "false: out of decisions", default=True),
    Param("tags", "list", "free labels", default=()),
    Param("valid_days", "integer", "days of validity after assignment", default=14, low=1),
    Param("valid_from", "time", "UTC time before which it is not offered", default=None),
    Param("valid_until", "time", "UTC time from which it is not valid", default=None),
    Param("stock", "integer", "pieces that may still be offered", default=None, low=0),
    Param("per_customer_limit", "integer", "orders that may use one piece", default=1, low=1),
    Param("channels", "list", "channels that may bring it", default=()),
    Param("eligible", "mapping", "a filter of docs/audiences.md", default=None),
    Param("scope", "mapping", "products, categories", default=None),
    Param("priority", "integer", "of stacked coupons the lower comes first", default=0),
    Param("funded_share", "number", "share of the face cost we bear", default=1.0, low=0, high=1),
    Param("stackable", "boolean", "true: beside other coupons", default=False),
)
_SCOPE = (
    Param("products", "list", "product ids", default=()),
    Param("categories", "list", "categories", default=()),
)
_PLAIN = {entry.name: entry.default for entry in fields(Offer) if entry.default is not MISSING}


def parse_offers(specs: Iterable[Mapping[str, Any]]) -> tuple[Offer, ...]:
    """Offers from plain mappings, in their order: arm k is the k-th.

    A mapping has coupon_id and kind, and may have the other fields of an Offer. Raises OfferError,
    which names the coupon and the key, for an unknown kind or key, a missing, mistyped or
    impossible value, and a coupon id that stands twice or is `control`.
    """
    offers: list[Offer] = []
    for position, spec in enumerate(specs, start=1):
        name = spec.get("coupon_id") if isinstance(spec, Mapping) else None
        where = f"offer {name}" if isinstance(name, str) and name else f"offer no. {position}"
        try:
            offer = _offer(spec)
            if any(offer.coupon_id == other.coupon_id for other in offers):
                raise WrongKey("coupon_id", "an id that stands once", f"{name!r} twice")
        except WrongKey as wrong:
            raise OfferError(
                f"{where}: {wrong.key}: expected {wrong.expected}, found {wrong.found}. "
                "Mend it under offers; docs/coupons.md lists the kinds and their parameters."
            ) from None
        offers.append(offer)
    return tuple(offers)


def _offer(spec: object) -> Offer:
    if not isinstance(spec, Mapping):
        raise WrongKey("the offer", "a mapping of keys", type(spec).__name__)
    values = filled(_FIELDS, spec, "")
    if values["coupon_id"] in ("", CONTROL):
        expected = f"an id other than {CONTROL}, which means no coupon"
        raise WrongKey("coupon_id", expected, repr(values["coupon_id"]))
    scope = filled(_SCOPE, values["scope"] or {}, "scope.")
    values["scope"] = Scope(**scope)
    for key in ("valid_from", "valid_until"):
        values[key] = None if values[key] is None else _naive(values[key])
    start, end = values["valid_from"], values["valid_until"]
    if start is not None and end is not None and end <= start:
        raise WrongKey("valid_until", f"a time after {start.isoformat()}", end.isoformat())
    coupon = make_coupon(values.pop("kind"), values.pop("params"))
    return Offer(coupon=coupon, **values)


def _naive(moment: datetime) -> datetime:
    """The same moment in UTC, without its zone; a time without a zone is UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def ladder(offers: Sequence[Offer]) -> BoolArray:
    """(K, K) whether offer i, by the catalogue alone, costs a customer at least what offer j does:
    see `Offer.costs_at_least`. False on the diagonal; a partial order."""
    found = np.zeros((len(offers), len(offers)), dtype=bool)
    for i, one in enumerate(offers):
        for j, other in enumerate(offers):
            found[i, j] = one.costs_at_least(other)
    return found


def documentation() -> str:
    """The text of docs/coupons.md, one table row a kind and one a parameter."""
    lines = [
        "# Coupon kinds",
        "",
        "Generated from the registry in `uplift/coupons.py`; renew it with",
        "`python -c \"from uplift.offers import documentation as d; print(d(), end='')\" "
        "> docs/coupons.md`.",
        "",
        "V is the list value of an order's purchase lines before the coupon. Costs are rounded "
        "half up to 0.01. *In `discount`*: the cost is taken off an order, so it already stands "
        "in the order lines' `discount`. *At most*: with the parameters of the first example.",
        "",
        "|kind|face cost on an order|in `discount`|at most|examples|",
        "|---|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        first = make_coupon(name, kind.examples[0].params)
        most = "unbounded" if first.max_face_cost is None else f"{first.max_face_cost:g}"
        shows = "yes" if kind.shows_as_discount else "no"
        examples = "; ".join(f"{example.text} → {example.cost:g}" for example in kind.examples)
        lines.append(f"|`{name}` {kind.title}|{kind.rule}|{shows}|{most}|{examples}|")
    lines += ["", "## Parameters", "", "|kind|parameter|value|default|cost|meaning|"]
    lines += ["|---|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        for param in kind.params:
            default = "required" if param.required else _shown(param.default)
            lines.append(
                f"|`{name}`|`{param.name}`|{param.expected}|{default}|{param.face or '–'}|"
                f"{param.meaning}|"
            )
    lines += [
        "",
        "*Cost*: rising, where a higher value makes the coupon cost no less on any order; falling, "
        "where it makes it cost no more.",
    ]
    lines += ["", "## Every coupon", "", "|key|value|default|meaning|", "|---|---|---|---|"]
    for param in _FIELDS:
        default = "required" if param.required else _shown(param.default)
        lines.append(f"|`{param.name}`|{param.expected}|{default}|{param.meaning}|")
    lines += ["", *_REDEMPTION]
    return "\n".join(lines) + "\n"


_REDEMPTION = (
    "## On an order",
    "",
    "A coupon costs nothing on an order, and the reason is given, where it is not valid yet "
    "(`coupon_not_started`) or no more (`coupon_expired`), no piece is left "
    "(`coupon_out_of_stock`), the customer may not have it (`not_eligible`) or has used it as "
    "often as `per_customer_limit` allows (`customer_limit`), no line of the order is within its "
    "scope (`out_of_scope`), or the order earns nothing by its kind (`below_threshold`).",
    "",
    "Of several coupons on one order, those that are `stackable` apply by `priority`, each on what "
    "the ones before left of the lines within its scope. A coupon that is not stackable applies "
    "alone: only where none came before it, and after it none follows (`not_stackable`).",
    "",
    "What an arm is expected to cost is its contact cost + P(redeemed | customer, arm) x expected "
    "face cost x `funded_share`. The rate is that of customers who are offered it, so who would "
    "have bought anyway counts; what is paid with the grant is certain.",
    "",
    "Models learn it from what exposures came to cost: `exposures.cost`, where it is logged, else "
    "contact and what the coupon took off orders (the `discount` of orders that bear it), one "
    "`unit_cost` per redemption or grant, or for points what the orders that bear the coupon earn "
    "beyond the usual, less `breakage`. Where a redemption is told by an event and no order bears "
    "the coupon, points are those of the first orders since the assignment. Each coupon's expected "
    "costs add up, on the training rows, to what was paid.",
    "",
    "A group purchase (拼团) needs to know of the group and is no kind. 买赠 is a gift, 新品体验价 "
    "a percent_off with a scope, 限时 a validity, 区域专属 a filter under `eligible`, 停车券 a "
    "non_cash.",
    "",
    "## Coupons that differ in face value",
    "",
    "Each coupon is an arm with a cost model of its own, so nothing in the data keeps a coupon of "
    "10 from looking cheaper than one of 5 for some customers. The catalogue does: of two coupons "
    "of one kind that are alike in scope, channels, dates and stacking, and of which one has no "
    "parameter, contact cost, funded share, validity or limit on the cheaper side (the column "
    "*cost* above), that one is never expected to cost a customer less. Where the models say "
    "otherwise they meet in the middle. What such coupons change is left to the data: a dearer one "
    "may well bring less.",
)


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple | Mapping):
        return "[]" if isinstance(value, tuple) else "{}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
