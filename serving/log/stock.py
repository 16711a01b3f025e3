"""Pieces of coupons, counted down so that no number of servers can hand out more than there are.

As with budgets, a grant is one conditional statement in the transaction that inserts the offers. A
piece that was handed out stays handed out, also when its offer expires or its customer is erased.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from sqlalchemy import BigInteger, bindparam, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from serving.log.engine import Log
from serving.log.lookup import Lookup
from serving.log.schema import coupon_stock as stock

_count: ColumnElement[int] = bindparam("count", type_=BigInteger)
_TAKE = (
    update(stock)
    .where(
        stock.c.coupon_id == bindparam("id"),
        stock.c.pieces.is_(None) | (stock.c.given + _count <= stock.c.pieces),
    )
    .values(given=stock.c.given + _count)
)
_ENDLESS = 1 << 62
_LOCKED = (
    select(stock.c.pieces, stock.c.given)
    .where(stock.c.coupon_id == bindparam("id"))
    .with_for_update()
)


def declare(log: Log, connection: Connection, pieces: Mapping[str, int | None]) -> None:
    """How many pieces of each coupon there are, given ones included; None: no limit. What was given
    since a coupon first had a limit stays counted."""
    for coupon, most in sorted(pieces.items()):
        statement = log.insert(stock).values(coupon_id=coupon, pieces=most, given=0)
        key = [stock.c.coupon_id]
        connection.execute(
            statement.on_conflict_do_update(index_elements=key, set_={"pieces": most})
            if most is not None
            else update(stock).where(stock.c.coupon_id == coupon).values(pieces=None)
        )


def left(log: Log, connection: Connection, coupons: Iterable[str]) -> dict[str, int]:
    """Pieces left of these coupons, as this transaction sees them; only of those with a limit."""
    rows = _limited(log).rows(connection, ids=log.values(coupons))
    return {row.coupon_id: max(0, row.pieces - row.given) for row in rows}


@lru_cache(maxsize=8)
def _limited(log: Log) -> Lookup:
    """Asked for every group of requests to a campaign that gives out pieces."""
    among = log.among(stock.c.coupon_id, "ids")
    return Lookup(log, select(stock).where(among, stock.c.pieces.is_not(None)))


def all_left(connection: Connection) -> dict[str, int]:
    """Pieces left of every coupon with a limit."""
    rows = connection.execute(select(stock).where(stock.c.pieces.is_not(None)))
    return {row.coupon_id: max(0, row.pieces - row.given) for row in rows}


def take(connection: Connection, coupon: str, count: int) -> bool:
    """Hand out so many pieces; False if fewer are left."""
    return connection.execute(_TAKE, {"id": coupon, "count": count}).rowcount == 1


def locked(connection: Connection, coupon: str) -> int:
    """Pieces left of a coupon, which nobody else takes until this transaction ends."""
    row = connection.execute(_LOCKED, {"id": coupon}).one()
    # Another deployment may have lifted the limit meanwhile.
    return _ENDLESS if row.pieces is None else max(0, int(row.pieces - row.given))


def give_back(connection: Connection, coupon: str, count: int) -> None:
    """Take back pieces of this very transaction, whose offers were not made after all."""
    connection.execute(
        update(stock).where(stock.c.coupon_id == coupon).values(given=stock.c.given - count)
    )
