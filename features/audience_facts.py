"""Which rows of a spine meet a filter: nodes compiled to Ibis expressions.

Purchases, events and offers become one aggregate per table, with a counter per distinct node;
features and segments are computed by the code that computes them for everything else. What is not
known (NULL, or a table that is absent) meets no comparison.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from features.audience_language import (
    LINE_COLUMNS,
    RESPONSES,
    All,
    AnyOf,
    Compare,
    Count,
    Member,
    Node,
    Not,
    ValueKind,
)
from features.build import compute, present_tables
from features.config import CONTROL, Config
from features.engines import on_engine
from features.frozen import FrozenValues
from features.grains import Workbench
from features.labels import LABEL_FEATURES, labels
from features.localtime import in_daypart, is_weekend, local_day, local_hour
from features.orders import MICRO
from features.registry import available, closure
from features.segment_names import COLUMNS
from features.segments import SEGMENT_FEATURES, segments
from features.spine import Scratch, forever, load_spine, visible
from features.tables import Tables

_TABLE_OF = {"purchase": "transactions", "event": "events", "offer": "exposures"}
# Columns, of those that a source may lack, that keys read.
_COLUMN_OF = {
    **{("purchase", key): column for key, column in LINE_COLUMNS.items()},
    ("purchase", "kind"): "coupon_id",
    ("event", "campaign"): "campaign_id",
}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Matches:
    """What `match` found for each row of a spine.

    met: a boolean column per filter; tier: the tier, None where nothing can be said; missing: what
    is NULL for everyone because a table is absent. Row i belongs to row i of the spine.
    """

    met: pd.DataFrame
    tier: pd.Series[Any]
    missing: tuple[str, ...]


def customer_columns(tables: Tables) -> dict[str, ValueKind] | None:
    """Columns of the customers table that a filter may name; None without such a table."""
    if tables.customers is None:
        return None
    found: dict[str, ValueKind] = {}
    for name, dtype in tables.customers.schema().items():
        if dtype.is_boolean():
            found[name] = "boolean"
        elif dtype.is_numeric():
            found[name] = "number"
        elif dtype.is_string():
            found[name] = "text"
        elif dtype.is_timestamp() or dtype.is_date():
            found[name] = "time"
    return found


def match(
    tables: Tables,
    spine: pd.DataFrame,
    nodes: Mapping[str, Node],
    config: Config,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> Matches:
    """Evaluate filters for each row of a spine, from rows strictly before its moment.

    Args:
        tables: the source's tables.
        spine: columns customer_id and as_of (UTC), as for `build_features`.
        nodes: parsed filters by name.
        config: time zone, offers, weekend overrides.
        frozen: population values, fitted earlier.
        churn: calibrated probability of churn per row of the spine, for the label churn_warning.
    """
    leaves = list(dict.fromkeys(leaf for node in nodes.values() for leaf in _leaves(node)))
    unknown = {leaf: name for leaf in leaves if (name := _absent(leaf, tables))}
    there = on_engine(tables, config)
    with Scratch(there.con) as scratch:
        loaded = load_spine(spine, config.timezone, scratch)
        work = Workbench(there, loaded, config, frozen, scratch)
        values, missing = _values(work, leaves, churn)
        wide = loaded.rows.select("row")
        if len(values.columns):
            wide = _beside(wide, scratch.load(_arrow(values)))
        counters: dict[Count, str] = {}
        for of in ("purchase", "event", "offer"):
            own = [n for n in leaves if isinstance(n, Count) and n.of == of and n not in unknown]
            if not own:
                continue
            names = {leaf: f"{of}_{i}" for i, leaf in enumerate(own)}
            counters |= names
            wide = _beside(wide, _counts(work, of, names))
            wide = wide.mutate(**{name: wide[name].fill_null(0) for name in names.values()})
        columns = [n.name for n in leaves if isinstance(n, Compare) and n.of == "customer"]
        if columns and tables.customers is not None:
            wide = _beside(wide, _customers(work, list(dict.fromkeys(columns))))
        conditions = {
            f"met_{i}": _condition(node, wide, counters).name(f"met_{i}")
            for i, node in enumerate(nodes.values())
        }
        found = scratch.fetch(wide.select("row", **conditions)).sort_by("row")
    met = {
        name: np.asarray(found[f"met_{i}"].to_numpy(), dtype=bool) for i, name in enumerate(nodes)
    }
    tier = values.get("segment_tier", pd.Series([None] * len(spine), dtype=object))
    return Matches(
        pd.DataFrame(met, index=pd.RangeIndex(len(spine)), columns=list(nodes)),
        tier,
        tuple(dict.fromkeys([*missing, *unknown.values()])),
    )


def _absent(leaf: Node, tables: Tables) -> str | None:
    """What of a leaf the source cannot tell, for lack of a table or column."""
    if isinstance(leaf, Compare) and leaf.of == "customer":
        lacking = tables.customers is None or f"customers.{leaf.name}" in tables.absent
        return f"customer.{leaf.name}" if lacking else None
    if isinstance(leaf, Count):
        table = _TABLE_OF[leaf.of]
        if getattr(tables, table) is None:
            return leaf.of
        for key, _ in leaf.keys:
            if f"{table}.{_COLUMN_OF.get((leaf.of, key))}" in tables.absent:
                return f"{leaf.of}.{key}"
    return None


def _leaves(node: Node) -> Iterable[Compare | Member | Count]:
    if isinstance(node, All | AnyOf):
        for child in node.nodes:
            yield from _leaves(child)
    elif isinstance(node, Not):
        yield from _leaves(node.node)
    else:
        yield node


def _values(
    work: Workbench, leaves: Sequence[Node], churn: npt.NDArray[np.float64] | None
) -> tuple[pd.DataFrame, list[str]]:
    """Features and segments that filters compare, and the tier; and what is missing of them.

    Columns: feature_<name>, segment_<scheme>, label_<id>; none for what is missing.
    """
    named = [n.name for n in leaves if isinstance(n, Compare) and n.of == "feature"]
    members = [n for n in leaves if isinstance(n, Member)]
    chosen = [str(label) for n in members if n.scheme == "label" for label in n.ids]
    present = present_tables(work.tables, work.config)
    with_orders = "transactions" in present
    needed = [*named, *(SEGMENT_FEATURES if with_orders else ())]
    needed += LABEL_FEATURES if with_orders and chosen else ()
    there = [name for name in dict.fromkeys(needed) if available(name, present)]
    frame = pd.DataFrame(compute(work, closure(there))) if there else pd.DataFrame()
    missing = [name for name in named if name not in there]
    data = {f"feature_{name}": frame[name] for name in named if name in there}
    if not with_orders:
        return pd.DataFrame(data), missing + [f"segment {n.scheme}" for n in members]
    frame = frame.assign(**dict.fromkeys(set(needed) - set(there), np.nan))
    found = segments(frame, work.frozen, work.config.segments)
    schemes = dict.fromkeys(["tier", *(n.scheme for n in members if n.scheme != "label")])
    data |= {f"segment_{s}": found[COLUMNS.get(s, s)] for s in schemes}
    if chosen:
        hold = labels(frame, found["lifecycle_stage"], work.frozen, churn)
        data |= {
            f"label_{label}": hold["response"] == label if label in RESPONSES else hold[label]
            for label in chosen
        }
    return pd.DataFrame(data), missing


def _arrow(values: pd.DataFrame) -> pa.Table:
    """The values with their row; NaN is NULL, and a column of NULLs alone keeps a type."""
    columns: dict[str, Any] = {"_row": pa.array(np.arange(len(values), dtype=np.int64))}
    for name, column in values.items():
        if column.dtype == bool:
            columns[str(name)] = pa.array(column.to_numpy())
        elif column.dtype == object:
            columns[str(name)] = pa.array(column, type=pa.string(), from_pandas=True)
        else:
            columns[str(name)] = pa.array(
                column.to_numpy(dtype=np.float64), type=pa.float64(), from_pandas=True
            )
    return pa.table(columns)


def _beside(wide: ir.Table, other: ir.Table) -> ir.Table:
    """Left join by row; `other` has at most one row of each `_row`."""
    return wide.left_join(other, wide.row == other._row).drop("_row")


def _counts(work: Workbench, of: str, names: Mapping[Count, str]) -> ir.Table:
    """A counter per node: order days (purchase) or rows (event, offer) that hold its keys."""
    facts = {"purchase": _purchases, "event": _events, "offer": _offers}[of](work, list(names))
    # What no node wants at any age is dropped before the join with the spine.
    wanted = functools.reduce(operator.or_, (facts[f"holds_{i}"] for i in range(len(names))))
    seen = visible(work.spine, facts.filter(wanted))
    holds = {}
    for i, leaf in enumerate(names):
        hold = seen[f"holds_{i}"]
        if leaf.ages is not None:
            hold = hold & (seen.age >= leaf.ages[0]) & (seen.age <= leaf.ages[1])
        holds[f"holds_{i}"] = hold.cast("int64")
    if of == "purchase":  # days count, not lines
        seen = seen.group_by(["row", "day"]).agg(**{k: v.max() for k, v in holds.items()})
        holds = {k: seen[k] for k in holds}
    counted = seen.group_by("row").agg(
        **{name: holds[f"holds_{i}"].sum() for i, name in enumerate(names.values())}
    )
    return counted.rename(_row="row")


def _hold(
    table: ir.Table, leaves: Sequence[Count], condition: Callable[[str, Any], ir.Value]
) -> dict[str, ir.Value]:
    """holds_<i>: whether a row holds all keys of leaf i; an unknown value holds none."""
    found: dict[str, ir.Value] = {}
    for i, leaf in enumerate(leaves):
        parts = [condition(key, values).fill_null(False) for key, values in leaf.keys]
        found[f"holds_{i}"] = functools.reduce(operator.and_, parts, ibis.literal(True))
    return found


def _purchases(work: Workbench, leaves: Sequence[Count]) -> ir.Table:
    items = work.items

    def condition(key: str, values: Any) -> ir.Value:
        if key in LINE_COLUMNS:
            return items[LINE_COLUMNS[key]].isin(values)
        if key == "kind":
            return items.coupon_id.isin(_coupons(work.config, values))
        if key == "daypart":
            hour = local_hour(items.order_at, work.offsets)
            return functools.reduce(operator.or_, (in_daypart(hour, v) for v in values))
        if key == "workday":
            weekend = is_weekend(items.day, work.config.features.weekend_overrides)
            return ~weekend if values[0] else weekend
        return items.order_paid >= round(values[0] * MICRO)

    return items.select("customer", "day", "since", "until", **_hold(items, leaves, condition))


def _events(work: Workbench, leaves: Sequence[Count]) -> ir.Table:
    assert work.tables.events is not None, "the caller looked"
    events = work.tables.events.join(work.spine.customers, "customer_id")
    columns = {"type": events.type, "campaign": events.campaign_id}
    return _dated(
        work,
        events,
        events.occurred_at,
        _hold(events, leaves, lambda key, values: columns[key].isin(values)),
    )


def _offers(work: Workbench, leaves: Sequence[Count]) -> ir.Table:
    """Exposures that issued an offer: neither control nor a reminder of an earlier one."""
    assert work.tables.exposures is not None, "the caller looked"
    rows = work.tables.exposures.filter(
        lambda e: (e.arm != CONTROL) & (e.variant != "reminder").fill_null(True)
    )
    given = rows.join(work.spine.customers, "customer_id")

    def condition(key: str, values: Any) -> ir.Value:
        if key == "campaign":
            return given.campaign_id.isin(values)
        return given.arm.isin(values if key == "arm" else _coupons(work.config, values))

    return _dated(work, given, given.assigned_at, _hold(given, leaves, condition))


def _dated(
    work: Workbench, rows: ir.Table, time: ir.Value, holds: Mapping[str, ir.Value]
) -> ir.Table:
    return rows.select(
        customer=rows.customer,
        day=local_day(time, work.offsets),
        since=time.cast("timestamp(6)"),
        until=forever(),
        **holds,
    )


def _customers(work: Workbench, names: Sequence[str]) -> ir.Table:
    """Columns of the customers table; a customer who joins later is not known yet."""
    assert work.tables.customers is not None, "the caller looked"
    rows = work.tables.customers.join(work.spine.customers, "customer_id")
    always = ibis.timestamp("1677-09-22T00:00:00").cast("timestamp(6)")
    columns: dict[str, ir.Value] = {}
    for name in names:
        value = rows[name]
        if value.type().is_floating():
            value = ibis.ifelse(value.isnan(), ibis.null(value.type()), value)
        elif value.type().is_date():
            value = value.cast("timestamp(6)")
        columns[f"customer_{name}"] = value
    facts = rows.select(
        customer=rows.customer,
        day=ibis.literal(0, type="int64"),
        since=rows.joined_at.cast("timestamp(6)").fill_null(always),
        until=forever(),
        **columns,
    )
    return visible(work.spine, facts).select("row", *columns).rename(_row="row")


def _coupons(config: Config, kinds: Sequence[str]) -> list[str]:
    return [offer.coupon_id for offer in config.offers if offer.kind in kinds]


def _condition(node: Node, wide: ir.Table, counters: Mapping[Count, str]) -> Any:
    """A node as a boolean that is never NULL."""
    if isinstance(node, All | AnyOf):
        join = operator.and_ if isinstance(node, All) else operator.or_
        return functools.reduce(join, (_condition(n, wide, counters) for n in node.nodes))
    if isinstance(node, Not):
        return ~_condition(node.node, wide, counters)
    if isinstance(node, Count):
        if node not in counters:
            return ibis.literal(False)
        count = wide[counters[node]]
        enough = count >= node.least
        return enough if node.most is None else enough & (count <= node.most)
    values: tuple[Any, ...]
    if isinstance(node, Member) and node.scheme == "label":
        held = [wide[f"label_{i}"] for i in node.ids if f"label_{i}" in wide.columns]
        return functools.reduce(operator.or_, held, ibis.literal(False))
    if isinstance(node, Member):
        name, op, values = f"segment_{node.scheme}", "in", node.ids
    else:
        name, op, values = f"{node.of}_{node.name}", node.op, node.values
    if name not in wide.columns:  # of a table that is absent
        return ibis.literal(op == "is_null")
    column = wide[name]
    if op == "is_null":
        return column.isnull()
    if op == "in":
        return column.isin(values).fill_null(False)
    if op == "between":
        return column.between(*values).fill_null(False)
    return _COMPARE[op](column, values[0]).fill_null(False)
