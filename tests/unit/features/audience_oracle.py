"""Audience filters in plain Python, one customer and moment at a time, from the filter as written.

Slow, and without the product's parser and engine. Features and segments come from outside: they
have an oracle of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

import numpy as np

from tests.unit.features.oracle_history import History, Order, Row
from tests.unit.features.oracle_orders import DAYPARTS

LINE = {
    "product": "product_id",
    "category": "category",
    "coupon": "coupon_id",
    "channel": "channel",
    "store": "store_id",
    "payment": "payment_method",
}


@dataclass(frozen=True)
class Person:
    """One customer at one moment. values: features and segments by name, labels as a set."""

    history: History
    values: Mapping[Any, Any]
    labels: set[str]


def meets(node: Row, who: Person, audiences: Mapping[str, Row]) -> bool:
    """Whether a customer meets a filter."""
    if "all" in node:
        return all(meets(n, who, audiences) for n in node["all"])
    if "any" in node:
        return any(meets(n, who, audiences) for n in node["any"])
    if "not" in node:
        return not meets(node["not"], who, audiences)
    if "audience" in node:
        return meets(audiences[node["audience"]], who, audiences)
    if "segment" in node:
        if node["segment"] == "label":
            return bool(who.labels & set(node["in"]))
        return who.values[node["segment"]] in node["in"]
    if "feature" in node:
        return _holds(who.values[node["feature"]], node["op"], node.get("value"))
    if "customer" in node:
        value = who.history.profile.get(node["customer"])
        return _holds(value, node["op"], node.get("value"))
    least = node.get("min", 0 if "max" in node else 1)
    found = _count(node, who.history)
    return bool(least <= found <= node.get("max", np.inf))


def _holds(value: Any, op: str, other: Any) -> bool:
    if op == "is_null":
        return value is None
    if value is None:
        return False
    if isinstance(value, datetime):
        read = [datetime.fromisoformat(o) for o in (other if isinstance(other, list) else [other])]
        other = read if isinstance(other, list) else read[0]
    if op == "in":
        return value in other
    if op == "between":
        return bool(other[0] <= value <= other[1])
    holds = {
        "=": value == other,
        "!=": value != other,
        "<": op == "<" and value < other,
        "<=": op == "<=" and value <= other,
        ">": op == ">" and value > other,
        ">=": op == ">=" and value >= other,
    }[op]
    return bool(holds)


def _count(node: Row, h: History) -> int:
    def in_window(age: int) -> bool:
        if "within_days" in node:
            return bool(age <= node["within_days"])
        low, high = node.get("between_days", (0, 10**9))
        return bool(low <= age <= high)

    if "purchase" in node:
        keys = node["purchase"]
        days = {
            h.day(o.at)
            for o in h.valid
            if in_window(h.age(o.at)) and any(_line(keys, line, o, h) for line in o.lines)
        }
        return len(days)
    if "event" in node:
        keys = {("campaign_id" if k == "campaign" else k): v for k, v in node["event"].items()}
        return sum(
            in_window(h.age(e["occurred_at"])) and all(_one_of(e[k], v) for k, v in keys.items())
            for e in h.events
        )
    keys = node["offer"]
    kinds = {coupon: offer["kind"] for coupon, offer in h.settings.offers.items()}
    return sum(
        e["variant"] != "reminder"
        and in_window(h.age(e["assigned_at"]))
        and ("campaign" not in keys or _one_of(e["campaign_id"], keys["campaign"]))
        and ("arm" not in keys or _one_of(e["arm"], keys["arm"]))
        and ("kind" not in keys or _one_of(kinds[e["arm"]], keys["kind"]))
        for e in h.offers
    )


def _line(keys: Row, line: Row, order: Order, h: History) -> bool:
    local = h.local(order.at)
    for key, wanted in keys.items():
        if key in LINE:
            held = _one_of(line[LINE[key]], wanted)
        elif key == "kind":
            known = h.settings.offers.get(line["coupon_id"])
            held = known is not None and _one_of(known["kind"], wanted)
        elif key == "daypart":
            part = next(name for name, hours in DAYPARTS.items() if local.hour in hours)
            held = _one_of(part, wanted)
        elif key == "workday":
            day = local.date()
            weekend = h.settings.weekend_overrides.get(str(day), day.weekday() >= 5)
            held = wanted is not weekend
        else:
            held = order.paid >= Fraction(str(wanted))
        if not held:
            return False
    return True


def _one_of(value: str | None, wanted: Any) -> bool:
    """Ids are text; a filter may write one as a number."""
    return value in [str(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
