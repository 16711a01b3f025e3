"""Orders and lines of one moment, from the sums per day and only the lines that are needed.

Days whose last line lies before the moment are taken as they are: their orders were summed when
they were taken in. Only the lines of the day that the moment falls into are summed anew. A line
finds its order by a whole number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from features.config import Config
from features.localtime import Offsets
from features.orders import (
    ITEM,
    KEY,
    OF_ITEMS,
    STATE,
    as_versions,
    line_facts,
    order_sums,
    shared_items,
)
from features.parsing import literal
from features.spine import Scratch, Spine, forever, seen_before
from features.store.days import COLUMNS, FIRSTS, part_sums
from features.store.manifest import Manifest, settings_digests

PART = (*KEY, "order_at", "since", "is_return", *STATE)


@dataclass(frozen=True)
class Store:
    """A state of the store, readable in a connection (a DuckDB backend of Ibis)."""

    backend: Any
    folder: Path
    manifest: Manifest

    def make_view(self, name: str) -> None:
        """Make the table transactions as a view."""
        files = [day.lines for day in self.manifest.days.values()]
        self._view(name, files, f"SELECT {', '.join(COLUMNS)}", "WHERE NOT _repeat")

    def before(
        self, spine: Spine, config: Config, offsets: Offsets, scratch: Scratch
    ) -> Moment | None:
        """What the store has of a spine of one moment; None where it does not fit the question."""
        days = self.manifest.days
        moment = spine.latest
        fits = settings_digests(config, self.manifest.people, numbered=self.manifest.numbered)
        if not spine.single or scratch.con is not self.backend or fits != self.manifest.settings:
            return None
        open_days = [name for name, day in days.items() if not seen_before(day.last, moment)]
        whole = [name for name in days if not open_days or name < open_days[0]]
        cut = [n for n in days if n not in whole and seen_before(days[n].first, moment)]
        if not whole:
            return None
        return Moment(
            self._lines(whole), self._orders(whole), self._lines(cut) if cut else None,
            spine, config, offsets, scratch,
        )  # fmt: skip

    def _lines(self, days: Sequence[str]) -> ir.Table:
        name = f"_store_lines_{days[0]}_{days[-1]}"
        files = [self.manifest.days[day].lines for day in days]
        columns = (*COLUMNS, "_order", *(f"_first_{column}" for column in FIRSTS))
        self._view(name, files, f"SELECT {', '.join(columns)}", "WHERE NOT _repeat")
        return self.backend.table(name)

    def _orders(self, days: Sequence[str]) -> ir.Table:
        name = f"_store_orders_{days[0]}_{days[-1]}"
        self._view(name, [self.manifest.days[day].orders for day in days], "SELECT *", "")
        return self.backend.table(name)

    def _view(self, name: str, files: Sequence[str], select: str, where: str) -> None:
        listed = ", ".join(literal(str(self.folder / file)) for file in files)
        self.backend.con.execute(
            f'CREATE OR REPLACE VIEW "{name}" AS {select} FROM read_parquet([{listed}]) {where}'
        )


@dataclass(frozen=True)
class Moment:
    """Orders and lines of a spine's single moment.

    `days` and `orders`: lines and sums of the days before; `cut`: lines of the days after, of
    which those before the moment count.
    """

    days: ir.Table
    orders: ir.Table
    cut: ir.Table | None
    spine: Spine
    config: Config
    offsets: Offsets
    scratch: Scratch

    @cached_property
    def _cut(self) -> ir.Table | None:
        """Lines of the day of the moment, before it."""
        if self.cut is None:
            return None
        own = self.cut.join(self.spine.customers, "customer_id")
        own = own.filter(seen_before(own.transacted_at, self.spine.latest))
        return self.scratch.keep(self._facts(own, KEY))

    def _facts(self, lines: ir.Table, keys: tuple[str, ...]) -> ir.Table:
        facts, constants = line_facts(lines, self.config, self.offsets, frozenset(), keys)
        return facts.mutate(**constants)

    @cached_property
    def _parts(self) -> ir.Table:
        """Shares of orders: of each day before, and of the day of the moment."""
        before = self.orders.join(self.spine.customers, "customer_id").select("_order", *PART)
        if self._cut is None:
            return before
        now = part_sums(self._cut, KEY, self.config).mutate(_order=ibis.null("int64"))
        return before.union(now.select("_order", *PART), distinct=False)

    @cached_property
    def _whole(self) -> ir.Table:
        """Orders: `order` is the number that their lines bear, or below 0 where they have several
        parts, or one that has no number."""
        parts = self._parts
        merged = parts.group_by(list(KEY)).agg(
            number=parts["_order"].min(),
            numbered=parts["_order"].count() == parts.count(),
            parts=parts.count(),
            order_at=parts.order_at.min(),
            since=parts.since.max(),
            **order_sums(parts, self.config),
        )
        own = merged.numbered & (merged.parts == 1)
        further = -1 - ibis.row_number().over(ibis.window())
        return self.scratch.keep(merged.mutate(order=ibis.ifelse(own, merged.number, further)))

    @cached_property
    def versions(self) -> ir.Table:
        """All orders, as `orders.only_versions` gives those of several lines."""
        return self.scratch.keep(as_versions(self._whole.mutate(until=forever()), self.offsets))

    @cached_property
    def returns(self) -> ir.Table:
        """Return lines, none with a number of an order."""
        before = self.days.join(self.spine.customers, "customer_id")
        found = self._facts(before, ("customer",))
        if self._cut is not None:
            found = found.union(self._cut.drop("order_id"), distinct=False)
        return self.scratch.keep(found.filter(found.is_return).mutate(order=ibis.null("int64")))

    @cached_property
    def valued(self) -> tuple[ir.Table, ir.Table]:
        """Purchase lines of valid orders: those of one day before the moment's, and the others.

        As `orders.order_items`. The former have `first_<column>` too: whether the line is the first
        of its order with its value.
        """
        firsts = tuple(f"_first_{column}" for column in FIRSTS)
        lines = self._facts(self.days, ("_order", *firsts))
        bought = lines.filter(lines.bought)
        valid = self.versions.filter(self.versions.valid & (self.versions.order > 0))
        valid = valid.mutate(order_paid=valid.paid)
        joined = bought.inner_join(valid, bought["_order"] == valid.order)
        single = joined.select(
            **{name: valid[name] for name in ITEM},
            **{name: bought[name] for name in OF_ITEMS},
            **{name.removeprefix("_"): bought[name] for name in firsts},
        )
        return single, shared_items(self._lines_of_others(bought), self.versions)

    def _lines_of_others(self, bought: ir.Table) -> ir.Table:
        """Purchase lines of orders that are of several days or of the day of the moment."""
        others = self._whole.filter(self._whole.order < 0).select(*KEY, "order")
        needed = ("order", "at", *OF_ITEMS)
        known = self._parts.filter(self._parts["_order"].notnull())
        numbers = self.scratch.keep(known.inner_join(others, KEY).select("_order", "order"))
        found = bought.inner_join(numbers, "_order").select(*needed)
        if self._cut is not None:
            now = self._cut.filter(self._cut.bought).inner_join(others, KEY).select(*needed)
            found = found.union(now, distinct=False)
        return found
