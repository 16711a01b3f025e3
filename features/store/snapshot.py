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
    OF_LINES,
    STATE,
    as_versions,
    line_facts,
    order_sums,
)
from features.parsing import literal
from features.spine import Scratch, Spine, forever, seen_before
from features.store.days import COLUMNS, FIRSTS, part_sums
from features.store.manifest import Manifest, settings_digests

PART = (*KEY, "order_at", "since", "is_return", *STATE)
FIRST = tuple(f"_first_{column}" for column in FIRSTS)


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
            spine, config, offsets, self._absent, scratch,
        )  # fmt: skip

    @cached_property
    def _absent(self) -> frozenset[str]:
        """Columns that no file has."""
        given = {name for file in self.manifest.files.values() for name in file.given}
        return frozenset(f"transactions.{name}" for name in OF_LINES if name not in given)

    def _lines(self, days: Sequence[str]) -> ir.Table:
        name = f"_store_lines_{days[0]}_{days[-1]}"
        files = [self.manifest.days[day].lines for day in days]
        columns = (*COLUMNS, "_order", *FIRST)
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
    absent: frozenset[str]
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
        facts, constants = line_facts(lines, self.config, self.offsets, self.absent, keys)
        return facts.mutate(**constants)

    @cached_property
    def _shares(self) -> ir.Table:
        """Shares of orders: of each day before, and of the day of the moment, without a number."""
        before = self.orders.join(self.spine.customers, "customer_id").select("_order", *PART)
        if self._cut is not None:
            now = part_sums(self._cut, KEY, self.config).mutate(_order=ibis.null("int64"))
            before = before.union(now.select("_order", *PART), distinct=False)
        return self.scratch.keep(before.mutate(code=before.order_id.hash()))

    @cached_property
    def _merged(self) -> tuple[ir.Table, ir.Table]:
        """Shares of orders that have several or one without a number, with `order`; these orders.

        Few orders are of several days, so all but these are spared the merging. Two orders of one
        hash are merged each by itself, which changes nothing but their number.
        """
        shares = self._shares
        own = shares.group_by(["customer", "code"]).agg(
            n=shares.count(), numbers=shares["_order"].count()
        )
        own = self.scratch.keep(own.filter((own.n > 1) | (own.numbers == 0)))
        parts = self.scratch.keep(shares.semi_join(own, ["customer", "code"]))
        merged = parts.group_by(list(KEY)).agg(
            order_at=parts.order_at.min(),
            since=parts.since.max(),
            **order_sums(parts, self.config),
        )
        merged = self.scratch.keep(merged.mutate(order=-1 - ibis.row_number().over(ibis.window())))
        return parts.inner_join(merged.select(*KEY, "order"), KEY), merged

    @cached_property
    def versions(self) -> ir.Table:
        """All orders, as `orders.only_versions` gives those of several lines.

        `order` is the number that their lines bear, or below 0 for orders of `_merged`.
        """
        parts, merged = self._merged
        alone = self._shares.filter(self._shares["_order"].notnull())
        alone = alone.anti_join(parts, ["customer", "code"]).mutate(order=alone["_order"])
        names = ("order", *(name for name in PART if name != "order_id"))
        every = alone.select(*names).union(merged.select(*names), distinct=False)
        return self.scratch.keep(as_versions(every.mutate(until=forever()), self.offsets))

    @cached_property
    def returns(self) -> ir.Table:
        """Return lines, none with a number of an order."""
        found = self._facts(self.days, ("customer_id",))
        found = found.filter(found.is_return).join(self.spine.customers, "customer_id")
        found = found.drop("customer_id")
        if self._cut is not None:
            now = self._cut.filter(self._cut.is_return)
            found = found.union(now.select(*found.columns), distinct=False)
        return self.scratch.keep(found).mutate(order=ibis.null("int64"))

    @cached_property
    def _items(self) -> ir.Table:
        """Purchase lines of valid orders, of the days before; `order` is that of `versions`."""
        facts, constants = line_facts(
            self.days, self.config, self.offsets, self.absent, ("_order", *FIRST)
        )
        bought = facts.filter(facts.bought)
        valid = self._valid
        parts = self._merged[0].filter(self._merged[0]["_order"].notnull())
        parts = parts.select("_order", "order").inner_join(valid, "order")
        alone = valid.filter(valid.order > 0).mutate(_order=valid.order)
        orders = alone.select(*parts.columns).union(parts, distinct=False)
        joined = bought.inner_join(orders, "_order")
        found = joined.select(
            *("order", "version"),
            **{name: orders[name] for name in ITEM},
            **{name: bought[name] for name in OF_ITEMS if name not in constants},
            **{name: bought[name] for name in FIRST},
        )
        constants = {name: value for name, value in constants.items() if name in OF_ITEMS}
        return self.scratch.keep(found).mutate(**constants)

    @cached_property
    def _valid(self) -> ir.Table:
        valid = self.versions.filter(self.versions.valid)
        return valid.select("order", "version", *ITEM[:-1], order_paid=valid.paid)

    @cached_property
    def valued(self) -> tuple[ir.Table, ir.Table]:
        """Purchase lines of valid orders: those of one day before the moment's, and the others.

        As `orders.order_items`. The former have `first_<column>` too: whether the line is the first
        of its order with its value.
        """
        items = self._items
        single = items.filter(items.order > 0).select(
            *ITEM, *OF_ITEMS, **{name.removeprefix("_"): items[name] for name in FIRST}
        )
        others = items.filter(items.order < 0).select("version", *ITEM, *OF_ITEMS)
        if self._cut is not None:
            bought = self._cut.filter(self._cut.bought)
            merged = self._merged[1].select(*KEY, "order")
            now = bought.inner_join(merged, KEY).inner_join(self._valid, "order")
            others = others.union(now.select(*others.columns), distinct=False)
        return single, others
