"""Order lines as features need them: worked out once for the tables of a source.

What a line says by itself, which order it shares with others and who bought it do not depend on the
moment; so every build from the same tables, of whatever moments and customers, starts here.
"""

from __future__ import annotations

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from features.config import Config
from features.localtime import Offsets
from features.orders import line_facts, numbered, shared_orders
from features.spine import Scratch, Spine, seen_before
from features.tables import Tables


@dataclass(frozen=True)
class Lines:
    """All purchase and return lines of a source.

    `lines`: customer (the source's own number), order (a number; NULL for a line that is alone in
    its order) and what `orders.line_facts` says. `codes`: customer, customer_id; numbers are in the
    order of the ids, so customers whose ids follow each other lie together. `customers`: how many
    there are. `constants`: columns that are the same for all lines.
    """

    lines: ir.Table
    codes: ir.Table
    customers: int
    constants: dict[str, ir.Value]

    def of(self, spine: Spine, scratch: Scratch) -> ir.Table:
        """Lines of the spine's customers, by their code there, before its latest moment."""
        own = self.codes.join(spine.customers, "customer_id")
        own = scratch.keep(own.select(number=self.codes.customer, code=spine.customers.customer))
        seen = self.lines.filter(seen_before(self.lines["at"], spine.latest))
        shift = own.code - own.number
        ends = own.agg(
            people=own.count(),
            first=own.number.min(),
            last=own.number.max(),
            least=shift.min(),
            most=shift.max(),
        )
        people, first, last, least, most = scratch.fetch(ends).to_pylist()[0].values()
        if 0 < people < self.customers:
            # Lines lie in the order of the numbers: those outside are not even read.
            seen = seen.filter(seen.customer.between(first, last))
        if people and people == last - first + 1 and least == most:
            # Everybody between, in the same order: nothing to look up.
            code = (seen.customer + least).cast("int32")
            return seen.mutate(customer=code, **self.constants)
        joined = seen.inner_join(own, seen.customer == own.number)
        columns = {name: seen[name] for name in seen.columns if name != "customer"}
        found = joined.select(customer=own.code, **columns)
        # Of most customers between, finding them again for each use is cheaper than writing.
        few = not people or 2 * people < last - first + 1
        return (scratch.keep(found) if few else found).mutate(**self.constants)


def lines_of(tables: Tables, config: Config, offsets: Offsets) -> Lines:
    """The lines of the tables as the configuration reads them; made at the first call."""
    assert tables.transactions is not None, "order features need transactions"
    reads = (config.offers, config.features.online_channels, config.features.mobile_payments)
    key = (tables.transactions.op(), tables.absent, repr(reads), tuple(offsets))
    if key not in tables.prepared:
        tables.prepared[key] = _prepare(tables, config, offsets)
    found: Lines = tables.prepared[key]
    return found


def _prepare(tables: Tables, config: Config, offsets: Offsets) -> Lines:
    t = tables.transactions
    assert t is not None
    scratch = Scratch(tables.con)  # never emptied: what it keeps ends with the connection
    ids = t.select("customer_id").distinct()
    in_order = ibis.row_number().over(ibis.window(order_by=ids.customer_id))
    codes = scratch.keep(ids.select("customer_id", customer=in_order.cast("int32")))
    keys = ("customer", "order_id")
    facts, constants = line_facts(
        t.join(codes, "customer_id"), config, offsets, tables.absent, keys
    )
    with Scratch(tables.con) as passing:
        shared = passing.keep(shared_orders(facts))
        # A customer's lines side by side: what is gathered by customer stays in the cache.
        lines = scratch.keep(numbered(facts, shared), by="customer")
    n = scratch.fetch(codes.agg(n=codes.count()))["n"][0].as_py()
    return Lines(lines, codes, int(n), constants)
