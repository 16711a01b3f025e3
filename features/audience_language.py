"""The audience filter language: parsed and validated, every mistake named by its place.

A filter is what a YAML or JSON file holds: mappings, lists, texts and numbers. `parse` turns it
into the nodes below, whose values are checked and normalised; references to other audiences are
resolved. docs/audiences.md shows each node.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from features.config import TIERS, Config
from features.contracts import EVENT_TYPES
from features.errors import ConfigError
from features.labels import LABELS
from features.registry import CATALOGUE, HELPERS, find
from features.segments import RFM_CLASSES, STAGES, TIER_DETAILS
from features.spine import naive_utc

MAX_DEPTH = 8
# References let a short filter stand for a very long one; nothing sensible comes near this.
MAX_NODES = 1000

ValueKind = Literal["number", "text", "boolean", "time"]
Scalar = str | float | bool | datetime
Find = Callable[[str, str], tuple[Any, str]]

_EQUAL = ("=", "!=", "in", "is_null")
OPERATORS: dict[ValueKind, tuple[str, ...]] = {
    "number": ("=", "!=", "<", "<=", ">", ">=", "in", "between", "is_null"),
    "time": ("=", "!=", "<", "<=", ">", ">=", "in", "between", "is_null"),
    "text": _EQUAL,
    "boolean": _EQUAL,
}
LOGIC = ("all", "any", "not")
HEADS = (
    *LOGIC, "feature", "segment", "purchase", "event", "offer", "customer", "coupon", "audience"
)  # fmt: skip
COUNT_KEYS = ("within_days", "between_days", "min", "max")
# Keys of a purchase whose values are those of a column of the order lines.
LINE_COLUMNS = {
    "product": "product_id",
    "category": "category",
    "coupon": "coupon_id",
    "channel": "channel",
    "store": "store_id",
    "payment": "payment_method",
}
ROW_KEYS: dict[str, tuple[str, ...]] = {
    "purchase": (*LINE_COLUMNS, "kind", "daypart", "workday", "min_order_value"),
    "event": ("type", "campaign"),
    "offer": ("campaign", "arm", "kind"),
}
# A customer between the two response labels is mid, one with too few offers unknown.
RESPONSES = ("mid", "unknown")
DAYPARTS = ("morning", "lunch", "afternoon", "evening", "night")


@dataclass(frozen=True)
class All:
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    node: Node


@dataclass(frozen=True)
class Compare:
    """A feature, or a column of the customers table, against values; none for is_null."""

    of: Literal["feature", "customer"]
    name: str
    op: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Member:
    """The customer's segment of a scheme is one of these; for labels, one of the customer's."""

    scheme: str
    ids: tuple[str | int, ...]


@dataclass(frozen=True)
class Count:
    """How many order days (purchase) or rows (event, offer) hold all keys: least to most.

    keys: (key, allowed values); ages: lowest and highest age in days, inclusive, None: all time.
    """

    of: Literal["purchase", "event", "offer"]
    keys: tuple[tuple[str, tuple[Scalar, ...]], ...]
    ages: tuple[int, int] | None
    least: int
    most: int | None


Node = All | AnyOf | Not | Compare | Member | Count


def schemes(config: Config) -> dict[str, tuple[str | int, ...]]:
    """The segment schemes that a filter may name, with the ids of each."""
    scores = tuple(range(1, config.segments.score_levels + 1))
    return {
        "tier": TIERS,
        "tier_detail": TIER_DETAILS,
        "rfm_class": RFM_CLASSES,
        "stage": STAGES,
        "label": (*LABELS, *RESPONSES),
        "r_score": scores,
        "f_score": scores,
        "m_score": scores,
    }


def parse(
    raw: Any,
    config: Config,
    find: Find,
    *,
    columns: Mapping[str, ValueKind] | None = None,
    where: str = "filter",
) -> Node:
    """Check a filter and return its nodes.

    Args:
        raw: the filter as read from YAML or JSON.
        config: offers, score levels.
        find: (name, place) -> the filter of another audience and its place; ConfigError if unknown.
        columns: columns of the customers table; None: not known, any name passes.
        where: place of the filter, for messages.

    Raises:
        ConfigError: the first mistake, with its place (`filter.all[1].purchase.prodcut`).
    """
    return _Parser(config, find, columns).node(raw, where, 1, ())


def filter_hash(raw: Any, find: Find) -> str:
    """sha256 (hex) of the canonical JSON of a valid filter, references resolved.

    Canonical: as written, but each reference replaced by the filter that it names; keys sorted, no
    spaces, UTF-8, dates and times in ISO 8601.
    """

    def resolved(node: Any) -> Any:
        if "audience" in node:
            return resolved(find(node["audience"], "filter")[0])
        if "not" in node:
            return {"not": resolved(node["not"])}
        return {
            key: [resolved(n) for n in value] if key in LOGIC else value
            for key, value in node.items()
        }

    return hashlib.sha256(canonical(resolved(raw)).encode()).hexdigest()


def canonical(raw: Any) -> str:
    """JSON with sorted keys and no spaces; equal for filters that are written alike."""
    return json.dumps(
        raw,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=lambda value: value.isoformat(),
    )


class _Parser:
    def __init__(self, config: Config, find: Find, columns: Mapping[str, ValueKind] | None) -> None:
        self.config, self.find, self.columns = config, find, columns
        self.kinds = tuple(dict.fromkeys(offer.kind for offer in config.offers))
        self.nodes = 0

    def node(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        """`names`: the audiences whose filters are being read, outermost first."""
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise _error(
                where, f"a depth of at most {MAX_DEPTH}", "more", "Write the filter flatter."
            )
        if self.nodes > MAX_NODES:
            raise _error(
                where, f"at most {MAX_NODES} nodes", "more", "Use `in` with a list of values."
            )
        if not isinstance(raw, Mapping):
            raise _error(where, f"a mapping with one of {_list(HEADS)}", _found(raw), REMEDY)
        head = next((key for key in HEADS if key in raw), None)
        if head is None:
            unknown = next(iter(raw), None)
            if unknown is None:
                raise _error(where, f"one of {_list(HEADS)}", "an empty mapping", REMEDY)
            raise _unknown(f"{where}.{unknown}", unknown, HEADS)
        build = getattr(self, f"_{head}")
        node: Node = build(raw, where, depth, names)
        return node

    def _all(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        return All(self._children("all", raw, where, depth, names))

    def _any(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        return AnyOf(self._children("any", raw, where, depth, names))

    def _not(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        _keys(raw, where, ("not",))
        return Not(self.node(raw["not"], f"{where}.not", depth + 1, names))

    def _children(
        self, head: str, raw: Any, where: str, depth: int, names: tuple[str, ...]
    ) -> tuple[Node, ...]:
        _keys(raw, where, (head,))
        found = raw[head]
        if not isinstance(found, list) or not found:
            raise _error(f"{where}.{head}", "a list of nodes, not empty", _found(found), REMEDY)
        return tuple(
            self.node(child, f"{where}.{head}[{i}]", depth + 1, names)
            for i, child in enumerate(found)
        )

    def _audience(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        _keys(raw, where, ("audience",))
        name = raw["audience"]
        place = f"{where}.audience"
        if not isinstance(name, str):
            raise _error(place, "the name of an audience", _found(name), REMEDY)
        if name in names:
            circle = " -> ".join([*names[names.index(name) :], name])
            raise _error(
                place, "a reference that does not lead back", f"the cycle {circle}", "Break it."
            )
        found, there = self.find(name, place)
        return self.node(found, there, depth, (*names, name))

    def _feature(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        _keys(raw, where, ("feature", "op", "value"))
        name, place = raw["feature"], f"{where}.feature"
        if not isinstance(name, str) or name in HELPERS:
            raise _unknown(place, name, tuple(CATALOGUE))
        feature = find(name) or CATALOGUE[_known(name, place, tuple(CATALOGUE))]
        kind: ValueKind = "text" if feature.dtype == "text" else "number"
        return Compare("feature", name, *_comparison(raw, where, kind))

    def _coupon(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        """A coupon that was issued, is valid, was not used, and expires within so many days."""
        _keys(raw, where, ("coupon",))
        place = f"{where}.coupon"
        if not isinstance(raw["coupon"], Mapping) or "expires_within_days" not in raw["coupon"]:
            raise _error(place, "{expires_within_days: 3}", _found(raw["coupon"]), REMEDY)
        _keys(raw["coupon"], place, ("expires_within_days",))
        days = _whole(raw["coupon"]["expires_within_days"], f"{place}.expires_within_days")
        return Compare("feature", "coupon_expires_days", "<=", (float(days),))

    def _customer(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        _keys(raw, where, ("customer", "op", "value"))
        name = raw["customer"]
        if not isinstance(name, str):
            raise _error(
                f"{where}.customer", "a column of the customers table", _found(name), REMEDY
            )
        kind: ValueKind | None = None
        if self.columns is not None:
            kind = self.columns[_known(name, f"{where}.customer", tuple(self.columns))]
        return Compare("customer", name, *_comparison(raw, where, kind))

    def _segment(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        _keys(raw, where, ("segment", "in"))
        known = schemes(self.config)
        scheme = _known(raw["segment"], f"{where}.segment", tuple(known))
        if "in" not in raw:
            raise _error(f"{where}.in", "a list of ids", "nothing", REMEDY)
        ids = _many(raw["in"], f"{where}.in")
        return Member(
            scheme,
            tuple(_known(v, f"{where}.in[{i}]", known[scheme]) for i, v in enumerate(ids)),
        )

    def _purchase(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        return self._count("purchase", raw, where)

    def _event(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        return self._count("event", raw, where)

    def _offer(self, raw: Any, where: str, depth: int, names: tuple[str, ...]) -> Node:
        return self._count("offer", raw, where)

    def _count(self, head: Literal["purchase", "event", "offer"], raw: Any, where: str) -> Count:
        _keys(raw, where, (head, *COUNT_KEYS))
        wanted, place = raw[head], f"{where}.{head}"
        if not isinstance(wanted, Mapping):
            raise _error(
                place,
                f"a mapping with any of {_list(ROW_KEYS[head])}",
                _found(wanted),
                "Write {} for every one.",
            )
        _keys(wanted, place, ROW_KEYS[head])
        keys = tuple(
            (key, self._allowed(key, value, f"{place}.{key}"))
            for key, value in sorted(wanted.items())
        )
        least, most = _limits(raw, where)
        return Count(head, keys, _ages(raw, where), least, most)

    def _allowed(self, key: str, value: Any, where: str) -> tuple[Scalar, ...]:
        """The values that a key lets pass; one value may stand for a list of one."""
        if key == "workday":
            return (_scalar(value, where, "boolean"),)
        if key == "min_order_value":
            return (_scalar(value, where, "number"),)
        closed: dict[str, Sequence[str]] = {
            "daypart": DAYPARTS,
            "type": EVENT_TYPES,
            "kind": self.kinds,
            "arm": self.config.arms,
        }
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _error(where, "a value, or a list of them", "an empty list", REMEDY)
        found = []
        for i, one in enumerate(values):
            place = f"{where}[{i}]" if isinstance(value, list) else where
            known = closed.get(key)
            text = _scalar(one, place, "text")
            found.append(text if known is None else _known(text, place, tuple(known)))
        return tuple(sorted(set(found)))


def _comparison(
    raw: Mapping[str, Any], where: str, kind: ValueKind | None
) -> tuple[str, tuple[Scalar, ...]]:
    """The operator and its values; `kind` None: of a column whose type is not known."""
    allowed = OPERATORS[kind or "number"]
    if "op" not in raw:
        raise _error(f"{where}.op", f"one of {_list(allowed)}", "nothing", REMEDY)
    op = raw["op"]
    if op not in allowed:
        of = f" for {kind} values" if kind else ""
        raise _error(
            f"{where}.op", f"one of {_list(allowed)}{of}", _found(op), "Write one of them."
        )
    place = f"{where}.value"
    if op == "is_null":
        if "value" in raw:
            raise _error(
                place, "no value with is_null", _found(raw["value"]), "Use `not` to negate."
            )
        return op, ()
    if "value" not in raw:
        raise _error(place, "a value", "nothing", f"Add value, or use {_list(('is_null',))}.")
    value = raw["value"]
    if op == "in":
        return op, tuple(
            _scalar(v, f"{place}[{i}]", kind) for i, v in enumerate(_many(value, place))
        )
    if op != "between":
        return op, (_scalar(value, place, kind),)
    if not isinstance(value, list) or len(value) != 2:
        raise _error(place, "a list of two values, low and high", _found(value), REMEDY)
    low, high = (_scalar(v, f"{place}[{i}]", kind) for i, v in enumerate(value))
    if type(low) is type(high) and low > high:  # type: ignore[operator]
        raise _error(place, "the lower value first", _found(value), "Swap them.")
    return op, (low, high)


def _scalar(value: Any, where: str, kind: ValueKind | None) -> Scalar:
    """One value of a kind. Ids are text, so a whole number is read as its digits."""
    if kind == "boolean":
        if isinstance(value, bool):
            return value
        raise _error(where, "true or false", _found(value), "Write one of them.")
    if kind == "number":
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise _error(where, "a finite number", _found(value), "Write it without quotes.")
    if kind == "time":
        return _moment(value, where)
    if kind == "text":
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return value
        raise _error(where, "text", _found(value), "Write it in quotes.")
    if isinstance(value, str | int | float | datetime):
        return value
    raise _error(where, "a text, a number, or true or false", _found(value), REMEDY)


def _moment(value: Any, where: str) -> datetime:
    """A naive UTC time; a date is its first moment."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    try:
        return naive_utc(value if isinstance(value, datetime) else datetime.fromisoformat(value))
    except (TypeError, ValueError, OverflowError):
        raise _error(
            where, "a time", _found(value), "Write it as ISO 8601: 2026-01-01T00:00:00Z."
        ) from None


def _ages(raw: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    if "within_days" in raw and "between_days" in raw:
        raise _error(
            f"{where}.between_days", "one window", "within_days too", "Leave one of them out."
        )
    if "within_days" in raw:
        return 0, _whole(raw["within_days"], f"{where}.within_days")
    if "between_days" not in raw:
        return None
    found, place = raw["between_days"], f"{where}.between_days"
    if not isinstance(found, list) or len(found) != 2:
        raise _error(place, "a list of two ages in days", _found(found), "For example [30, 90].")
    low, high = (_whole(v, f"{place}[{i}]") for i, v in enumerate(found))
    if low > high:
        raise _error(place, "the lower age first", _found(found), "Swap them.")
    return low, high


def _limits(raw: Mapping[str, Any], where: str) -> tuple[int, int | None]:
    most = _whole(raw["max"], f"{where}.max") if "max" in raw else None
    least = _whole(raw["min"], f"{where}.min") if "min" in raw else int(most is None)
    if most is not None and least > most:
        raise _error(f"{where}.max", f"at least min ({least})", str(most), "Mend one of them.")
    return least, most


def _whole(value: Any, where: str) -> int:
    # Far above any age or count, and within the integers of every engine.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**6:
        return value
    raise _error(where, "a whole number of at least 0", _found(value), "Mend it.")


def _many(value: Any, where: str) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    raise _error(where, "a list, not empty", _found(value), "For example [a, b].")


def _keys(raw: Mapping[Any, Any], where: str, allowed: Sequence[str]) -> None:
    for key in raw:
        if key not in allowed:
            raise _unknown(f"{where}.{key}", key, allowed)


def _known(value: Any, where: str, allowed: tuple[Any, ...]) -> Any:
    # True == 1, so the type counts too.
    if any(value == one and type(value) is type(one) for one in allowed):
        return value
    raise _unknown(where, value, allowed)


def _unknown(where: str, value: Any, allowed: Sequence[Any]) -> ConfigError:
    expected = f"one of {_list(allowed)}" if allowed else "a name, but none is configured"
    close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    return _error(where, expected, _found(value), f"Did you mean {close[0]}?" if close else REMEDY)


def _error(where: str, expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(where, expected=expected, found=found, remedy=remedy)


def _list(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)


def _found(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


REMEDY = "See docs/audiences.md."
