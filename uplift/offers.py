"""Offers: the arms besides control, read from a configuration and checked.

Every error names the coupon, the key, what was expected and found, and the remedy. The kinds of
coupons and their costs are in `uplift.coupons`, their common ground in `uplift.kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import uplift.coupons  # noqa: F401  (fills the registry)
from uplift.errors import OfferError
from uplift.kinds import KINDS, CouponKind, Order, Param, WrongKey, filled, make_coupon

CONTROL = "control"


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
        return self.coupon.face_cost(order)

    def spec(self) -> dict[str, Any]:
        """What `parse_offers` reads back to an equal offer; plain JSON."""
        return {
            "coupon_id": self.coupon_id,
            "kind": self.kind,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in self.params.items()},
            "contact_cost": self.contact_cost,
            "active": self.active,
            "tags": list(self.tags),
            "valid_days": self.valid_days,
        }


_FIELDS = (
    Param("coupon_id", "text", "name of the arm"),
    Param("kind", "text", "a coupon kind"),
    Param("params", "mapping", "parameters of the kind", default=MappingProxyType({})),
    Param("contact_cost", "number", "currency per contact", default=0.0, low=0),
    Param("active", "boolean", "false: out of decisions", default=True),
    Param("tags", "list", "free labels", default=()),
    Param("valid_days", "integer", "days of validity", default=14, low=1),
)


def parse_offers(specs: Iterable[Mapping[str, Any]]) -> tuple[Offer, ...]:
    """Offers from plain mappings, in their order: arm k is the k-th.

    A mapping has coupon_id and kind, and may have params, contact_cost, active, tags and
    valid_days. Raises OfferError, which names the coupon and the key, for an unknown kind or key,
    a missing, mistyped or impossible value, and a coupon id that stands twice or is `control`.
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
    coupon = make_coupon(values.pop("kind"), values.pop("params"))
    return Offer(coupon=coupon, **values)


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
    lines += ["", "## Parameters", "", "|kind|parameter|value|default|meaning|"]
    lines += ["|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        for param in kind.params:
            default = "required" if param.required else _shown(param.default)
            lines.append(f"|`{name}`|`{param.name}`|{param.expected}|{default}|{param.meaning}|")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
