"""Customers at past moments, what was known of them then, and what came after.

A moment t and a window of w days make a row's outcome complete when t + w is not after the end of
the data. Features use rows strictly before t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from features.build import build_features
from features.config import Config
from features.errors import DataError
from features.frozen import FrozenValues
from features.registry import feature_names
from features.spine import Scratch, naive_utc, seen_before, seen_customers
from features.tables import Tables, complete_until, time_range
from training.dataset import window_sql
from uplift.data import BoolArray, Float32Array, FloatArray, IntArray, Schema
from uplift.value import INPUTS, VALUE_TARGETS, History, Target

# Windows to learn from, newest first: what was true long ago is true of others.
MOST_WINDOWS = 4
SHORTEST_DAYS = 7


@dataclass(frozen=True)
class Windows:
    """What may be learned at a moment: windows of `days` that begin at `starts` and are over by
    then. `days` is less than what is asked for where history is too short for whole windows."""

    days: int
    starts: tuple[datetime, ...]


@dataclass(frozen=True)
class Plan:
    """One target's moments. test: the latest whose outcome is complete, held out; past: what may
    be learned at it; now: what may be learned at the end of the data, for the model to serve."""

    target: Target
    days: int
    test: datetime
    past: Windows
    now: Windows


def days_of(target: Target, config: Config) -> int:
    t = config.targets
    return {"repurchase": t.repurchase_days, "churn": t.churn_days, "clv": t.clv_days}[target]


def plan_of(target: Target, first: datetime, end: datetime, config: Config) -> Plan:
    """The moments of a target, for data from `first` until `end` (UTC).

    Raises DataError where history is too short to hold out a time.
    """
    days = days_of(target, config)
    test = end - timedelta(days=days)
    if (test - first).days < 2 * SHORTEST_DAYS:
        raise DataError(
            f"targets.{target}_days",
            expected=f"history of more than {days + 2 * SHORTEST_DAYS} days, to hold out a time",
            found=f"{(end - first).days} days",
            remedy=f"Ask for fewer days, or leave {target} out of training.response_targets.",
        )
    return Plan(target, days, test, windows(first, test, days), windows(first, end, days))


def windows(first: datetime, end: datetime, days: int) -> Windows:
    """Windows side by side that end with `end`, each with at least as much history before it."""
    span = (end - first).days
    length = min(days, span // 2)
    number = min(MOST_WINDOWS, span // length - 1)
    return Windows(length, tuple(end - timedelta(days=length * k) for k in range(1, number + 1)))


@dataclass(frozen=True)
class Panel:
    """Customers with an order, at each moment of all plans and at the end of the data.

    X         (n, d) float32, encoded by `schema`: the configured features and the models' inputs
    customer  (n,) codes; moment (n,) positions in `moments`
    """

    tables: Tables
    config: Config
    end: datetime
    plans: tuple[Plan, ...]
    moments: tuple[datetime, ...]
    schema: Schema
    X: Float32Array
    customer_id: npt.NDArray[np.object_]
    customer: IntArray
    moment: IntArray
    frozen: FrozenValues

    def at(self, *moments: datetime) -> BoolArray:
        """(n,) rows of these moments."""
        codes = [self.moments.index(m) for m in moments]
        out: BoolArray = np.isin(self.moment, codes)
        return out

    def history(self, rows: BoolArray) -> History:
        return History.of(self.X[rows], self.schema)

    def outcome(self, target: Target, rows: BoolArray, days: int) -> FloatArray:
        """(m,) what came in the `days` after each of the rows: for repurchase 1 with a valid
        order, for churn 1 without, for clv the contribution of all lines, returns included:
        amount - (1 - margin) (amount + discount); without a margin the revenue."""
        at = np.flatnonzero(rows)
        moments = np.array([naive_utc(m) for m in self.moments], dtype="datetime64[us]")
        spine = pa.table(
            {
                "_row": np.arange(len(at), dtype=np.int64),
                "customer_id": pa.array(self.customer_id[at], type=pa.string()),
                "assigned_at": moments[self.moment[at]],
                "arm": pa.nulls(len(at), pa.string()),
            }
        )
        con, transactions = self.tables.con, self.tables.transactions
        assert transactions is not None
        with Scratch(con) as scratch:
            table = scratch.keep(ibis.memtable(spine)).get_name()
            found = con.raw_sql(window_sql(con.compile(transactions), days, table)).df()
        brought = np.zeros((len(at), 3))
        brought[found["_row"]] = found[["orders", "net", "listed"]].to_numpy(dtype=float)
        orders, net, listed = brought.T
        if target == "clv":
            margin = self.config.outcome.margin_rate
            out: FloatArray = net if margin is None else net - (1 - margin) * listed
            return out
        ordered = (orders > 0).astype(np.float64)
        return 1 - ordered if target == "churn" else ordered

    def contribution_share(self, until: datetime) -> float:
        """Contribution per unit of revenue of all lines before a moment; 1 without a margin."""
        margin = self.config.outcome.margin_rate
        if margin is None:
            return 1.0
        t = self.tables.transactions
        assert t is not None
        past = t.filter(seen_before(t.transacted_at, naive_utc(until)))
        sums = past.aggregate(net=past.amount.sum(), off=past.discount.sum())
        row = sums.to_pyarrow().to_pylist()[0]
        net, off = float(row["net"] or 0.0), float(row["off"] or 0.0)
        return (net - (1 - margin) * (net + off)) / net if net > 0 else margin


def value_targets(config: Config) -> list[Target]:
    """The configured targets that are learned from transactions alone."""
    return [name for name in VALUE_TARGETS if name in config.training.response_targets]


def value_plans(tables: Tables, config: Config) -> tuple[Plan, ...]:
    """The moments of every configured value target; none without such targets.

    Raises DataError without transactions, or with too short a history.
    """
    targets = value_targets(config)
    if not targets:
        return ()
    span = None if tables.transactions is None else time_range(tables, ("transactions",))
    end = complete_until(tables, config)
    if span is None or end is None:
        raise DataError(
            "transactions",
            expected=f"order lines, to learn {', '.join(targets)} from",
            found="none",
            remedy="Add transactions, or remove these from training.response_targets.",
        )
    return tuple(plan_of(target, span[0], end, config) for target in targets)


def earliest(plans: Sequence[Plan]) -> datetime | None:
    """The first moment that anything is learned at."""
    starts = [m for plan in plans for m in (*plan.past.starts, *plan.now.starts, plan.test)]
    return min(starts, default=None)


def build_panel(
    tables: Tables, config: Config, plans: tuple[Plan, ...], frozen: FrozenValues
) -> Panel:
    """Features of every customer with an order, at every moment of the plans, in one build.

    `frozen` was fitted no later than at the first of the moments. Features whose table is missing
    are left out.
    """
    end = complete_until(tables, config)
    assert end is not None
    used = {m for p in plans for m in (*p.past.starts, *p.now.starts, p.test)}
    moments = tuple(sorted({*used, end}))
    spines = [seen_customers(tables, naive_utc(m)) for m in moments]
    spine = pd.concat(spines, ignore_index=True)
    names = list(dict.fromkeys((*feature_names(config), *INPUTS)))
    built = build_features(tables, spine, names, config, frozen)
    frame = built.frame[[n for n in names if n not in built.missing]]
    bought = (built.frame["order_days_total"] > 0).to_numpy()
    frame = frame[bought].reset_index(drop=True)
    schema = Schema.learn(frame)
    ids = spine["customer_id"].to_numpy(dtype=object)[bought]
    moment = np.repeat(np.arange(len(moments)), [len(s) for s in spines])[bought]
    return Panel(
        tables=tables,
        config=config,
        end=end,
        plans=plans,
        moments=moments,
        schema=schema,
        X=schema.encode(frame),
        customer_id=ids,
        customer=pd.factorize(ids)[0].astype(np.int64),
        moment=moment,
        frozen=frozen,
    )
