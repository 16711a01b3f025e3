"""What one build works with: its shared derivations, and the facts a feature function gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir

from features.config import Config
from features.lines import lines_of
from features.localtime import Offsets, utc_offsets
from features.orders import (
    money_history,
    only_versions,
    order_items,
    order_versions,
)
from features.spine import TIMES, Scratch, Spine, visible
from features.tables import Tables

if TYPE_CHECKING:
    from features.frozen import FrozenValues
    from features.store.snapshot import Moment


class Workbench:
    """The shared derivations of one build, each made when first asked for."""

    def __init__(
        self, tables: Tables, spine: Spine, config: Config, frozen: FrozenValues, scratch: Scratch
    ) -> None:
        self.tables, self.spine, self.config = tables, spine, config
        self.frozen, self.scratch = frozen, scratch

    @cached_property
    def offsets(self) -> Offsets:
        """UTC offsets of the local zone over the years of the tables, which are asked once."""
        given = (getattr(self.tables, name) for name in TIMES)
        key = ("years", *(None if table is None else table.op() for table in given))
        if key not in self.tables.prepared:
            self.tables.prepared[key] = self._years()
        first, last = self.tables.prepared[key]
        return utc_offsets(self.config.timezone, first, last)

    def _years(self) -> tuple[int, int]:
        years: list[int] = []
        for name, time in TIMES.items():
            table = getattr(self.tables, name)
            if name == "transactions" and self.tables.store is not None:
                years += self.tables.store.years
            elif table is not None:
                ends = table.agg(a=table[time].min(), b=table[time].max())
                ends = self.scratch.fetch(ends)
                years += [t.year for t in ends.to_pylist()[0].values() if t is not None]
        return min(years, default=1970), max(years, default=1970)

    @cached_property
    def stored(self) -> Moment | None:
        """What the incremental store has ready for the single moment of the spine."""
        if self.tables.store is None:
            return None
        return self.tables.store.before(self.spine, self.config, self.scratch)

    @cached_property
    def lines(self) -> ir.Table:
        """Purchase and return lines, with the number of their order if it has several; from a
        store, return lines alone."""
        if self.stored is not None:
            return self.stored.returns
        prepared = lines_of(self.tables, self.config, self.offsets)
        return prepared.of(self.spine, self.scratch)

    @cached_property
    def versions(self) -> ir.Table:
        """States of orders of several lines, in time; from a store, of all orders."""
        if self.stored is not None:
            return self.stored.versions
        made = only_versions if self.spine.single else order_versions
        return self.scratch.keep(made(self.lines, self.config, self.offsets))

    @cached_property
    def valued(self) -> tuple[ir.Table, ir.Table]:
        """Purchase lines of valid orders: alone in their order, and the others."""
        assert self.stored is None, "the store does not tell them apart"
        single, several = order_items(self.lines, self.versions)
        return single, self.scratch.keep(several)

    @cached_property
    def items(self) -> ir.Table:
        """Purchase lines of valid orders; see `orders.order_items`."""
        if self.stored is not None:
            return self.stored.items
        single, several = self.valued
        shared = several.drop("version")
        return single.select(*shared.columns).union(shared, distinct=False)

    @cached_property
    def history(self) -> ir.Table:
        """Orders and returns that each row of the spine may know."""
        seen = visible(self.spine, money_history(self.lines, self.versions))
        return seen if self.spine.single else self.scratch.keep(seen)

    @cached_property
    def order_days(self) -> ir.Table:
        """Local dates with a valid order: day, age, value (net of linked returns)."""
        known = self.history.filter(self.history.valid)
        sums = {"value": (known.paid + known.linked).sum()}
        if not self.spine.single:
            sums["age"] = known.age.min()
        days = known.group_by(["row", "day"]).agg(**sums)
        if self.spine.single:  # the age follows from the day
            today = ibis.literal(self.spine.earliest_day, type="int64")
            days = days.mutate(age=today - days.day)
        return self.scratch.keep(days)


def _greatest(values: Iterable[ir.Value]) -> ir.Value:
    """The greatest that is not NULL; not every engine knows that of one value."""
    given = list(values)
    return ibis.greatest(*given) if len(given) > 1 else given[0]


@ibis.udf.agg.builtin  # type: ignore[untyped-decorator]
def count_if(holds: bool) -> int:  # type: ignore[empty-body]
    """How many rows hold; faster on DuckDB than a filtered count."""


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
        return self.table.count() if where is None else count_if(where)

    @staticmethod
    def total(what: ir.Value, where: ir.Value) -> ir.Value:
        """Sum of what is true of the condition, 0 of nothing; faster than a filtered sum."""
        return ibis.ifelse(where, what, 0).sum()

    def most_frequent(self, values: Mapping[str, ir.Value]) -> ir.Value:
        """The value that is true of most orders; ties: latest order, then alphabetical.

        For a handful of values that are known beforehand: one pass counts all of them.
        """
        count = {v: self.count(holds) for v, holds in sorted(values.items())}
        last = {v: self.table.order_at.max(where=holds) for v, holds in sorted(values.items())}
        most = _greatest(count.values())
        # The time of a value that no order has is NULL, and so it is never the latest.
        latest = _greatest(ibis.ifelse(count[v] == most, last[v], None) for v in count)
        return ibis.cases(*(((count[v] == most) & (last[v] == latest), v) for v in count))

    @staticmethod
    def ratio(part: ir.Value, whole: ir.Value) -> ir.Value:
        """part ÷ whole; NULL where whole is 0."""
        return part.cast("float64") / whole.cast("float64").nullif(0.0)
