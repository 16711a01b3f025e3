"""What one build works with: its shared derivations, and the facts a feature function gets."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import ibis.expr.types as ir

from features.config import Config
from features.localtime import Offsets, utc_offsets
from features.orders import (
    money_history,
    only_versions,
    order_items,
    order_lines,
    order_versions,
    whole_orders,
)
from features.spine import TIMES, Scratch, Spine, visible
from features.tables import Tables

if TYPE_CHECKING:
    from features.frozen import FrozenValues


class Workbench:
    """The shared derivations of one build, each made when first asked for."""

    def __init__(
        self, tables: Tables, spine: Spine, config: Config, frozen: FrozenValues, scratch: Scratch
    ) -> None:
        self.tables, self.spine, self.config = tables, spine, config
        self.frozen, self.scratch = frozen, scratch

    @cached_property
    def offsets(self) -> Offsets:
        """UTC offsets of the local zone over the years of the tables."""
        years = [self.spine.latest.year]
        for name, time in TIMES.items():
            table = getattr(self.tables, name)
            if table is not None:
                ends = table.agg(a=table[time].min(), b=table[time].max()).to_pyarrow()
                years += [t.year for t in ends.to_pylist()[0].values() if t is not None]
        return utc_offsets(self.config.timezone, min(years), max(years))

    @cached_property
    def lines(self) -> ir.Table:
        """Purchase and return lines."""
        assert self.tables.transactions is not None, "order features need transactions"
        return self.scratch.keep(order_lines(self.tables.transactions, self.spine))

    @cached_property
    def whole(self) -> ir.Table:
        """Orders, whatever the time of their lines."""
        return self.scratch.keep(whole_orders(self.lines, self.config))

    @cached_property
    def versions(self) -> ir.Table:
        """States of orders in time."""
        if self.spine.single:
            return only_versions(self.whole, self.offsets)
        return self.scratch.keep(order_versions(self.lines, self.whole, self.config, self.offsets))

    @cached_property
    def valued(self) -> tuple[ir.Table, ir.Table]:
        """Purchase lines of valid orders: alone in their order, and the others."""
        single, several = order_items(self.lines, self.whole, self.versions, self.offsets)
        return single, self.scratch.keep(several)

    @cached_property
    def items(self) -> ir.Table:
        """Purchase lines of valid orders; see `orders.order_items`."""
        single, several = self.valued
        return single.union(several, distinct=False)

    @cached_property
    def history(self) -> ir.Table:
        """Orders and returns that each row of the spine may know."""
        seen = visible(self.spine, money_history(self.lines, self.versions, self.offsets))
        return seen if self.spine.single else self.scratch.keep(seen)


class Facts:
    """What a feature function gets: the columns of its relation, and the words of the rules.

    Columns are attributes (`o.paid`). `frozen` and `config` are those of the build.
    """

    def __init__(self, table: ir.Table, frozen: FrozenValues, config: Config) -> None:
        self.table, self.frozen, self.config = table, frozen, config

    def __getattr__(self, name: str) -> Any:
        return self.table[name]

    def within(self, days: int) -> ir.Value:
        """Age of at most so many local days."""
        return self.table.age <= days

    def count(self, where: ir.Value | None = None) -> ir.Value:
        return self.table.count(where=where)

    @staticmethod
    def ratio(part: ir.Value, whole: ir.Value) -> ir.Value:
        """part ÷ whole; NULL where whole is 0."""
        return part.cast("float64") / whole.cast("float64").nullif(0.0)
