"""Decisions in the log: written, found again, and what else the log knows of customers."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from serving.log.engine import Log
from serving.log.lookup import Lookup
from serving.log.schema import decisions, events, facts, refusals
from uplift.policy import digests

MICROSECOND = 1_000_000
# Without a `sent` event in this time, an offer stops counting against contact caps.
UNSENT = 72 * 3600 * MICROSECOND
Stored = Any
"""A row of the decisions, its columns as attributes."""

_ID = decisions.c.decision_id
_encode = msgspec.json.Encoder().encode
_TEXTS = 50  # ids of one page


def new_ids(count: int) -> list[str]:
    """Decision ids that nobody can guess and that sort by time, which keeps the index compact."""
    stamp = f"d-{time.time_ns() // MICROSECOND:011x}"
    random = os.urandom(10 * count).hex()
    return [f"{stamp}{random[i * 20 : i * 20 + 20]}" for i in range(count)]


def customer_hash(salt: bytes, customer_id: str) -> str:
    """What stands for a customer in lists that must not hold ids."""
    return hmac.digest(salt, b"customer\x1f" + customer_id.encode(), "sha256").hex()


def customer_hashes(salt: bytes, customer_ids: Sequence[str]) -> list[str]:
    """`customer_hash` of each of them."""
    text = digests(salt, b"customer\x1f", customer_ids).hex()
    return [text[at : at + 64] for at in range(0, len(text), 64)]


def stands(drawn: Any, standing: Any) -> ColumnElement[bool]:
    """Whether of two sets of the decisions' columns the second are of the decision that stands in
    the campaign's window that the first are of."""
    return and_(
        standing.campaign_id == drawn.campaign_id,
        standing.customer_id == drawn.customer_id,
        standing.window_id == drawn.window_id,
        standing.sticky,
    )


def _named(
    kinds: Mapping[str, str], hashes: Sequence[str], customers: Sequence[str]
) -> dict[str, str]:
    """By customer id what is known by hash."""
    if not kinds:
        return {}
    names = dict(zip(hashes, customers, strict=True))
    return {names[key]: kind for key, kind in kinds.items()}


class Past(NamedTuple):
    """What the log knows of customers beside their standing decisions.

    gone: `consent` or `erased`, of those who withdrew consent or were erased; offers: when somebody
    was decided an offer, in any campaign, the newest first, without those that were not sent in
    time; converted: who redeemed an offer of the campaign, or ordered after a decision of it.
    """

    gone: dict[str, str]
    offers: dict[str, list[int]]
    converted: set[str]


def _fact(
    name: str, who: Any, *, kind: Any = None, at: Any = None, sent: Any = None
) -> Select[Any]:
    """One of several kinds of facts that a statement finds together."""
    return select(
        literal(name).label("fact"),
        who.label("who"),
        (cast(None, Text) if kind is None else kind).label("kind"),
        (cast(None, BigInteger) if at is None else at).label("at"),
        (cast(None, BigInteger) if sent is None else sent).label("sent"),
    )


class Store:
    """Statements on the decisions of one log, built once."""

    def __init__(self, log: Log) -> None:
        self.log = log
        standing = select(decisions).where(
            decisions.c.campaign_id == bindparam("campaign"),
            decisions.c.window_id == bindparam("window"),
            decisions.c.sticky,
            log.among(decisions.c.customer_id, "ids"),
        )
        gone = select(refusals.c.customer_hash, refusals.c.kind).where(
            log.among(refusals.c.customer_hash, "ids")
        )
        withheld = _fact("gone", refusals.c.customer_hash, kind=refusals.c.kind).where(
            log.among(refusals.c.customer_hash, "hashes")
        )
        offered = _fact(
            "offered", decisions.c.customer_id, at=decisions.c.decided_at, sent=decisions.c.sent_at
        ).where(
            log.among(decisions.c.customer_id, "ids"),
            decisions.c.decided_at > bindparam("offered_since", type_=BigInteger),
            decisions.c.action == "offer",
        )
        ordered, redeemed = events.c.type == "ordered", events.c.type == "redeemed"
        earlier = exists().where(
            decisions.c.customer_id == events.c.customer_id,
            decisions.c.campaign_id == bindparam("campaign"),
            decisions.c.decided_at <= events.c.occurred_at,
        )
        bought = (
            _fact("converted", events.c.customer_id)
            .distinct()
            .where(
                log.among(events.c.customer_id, "ids"),
                events.c.occurred_at >= bindparam("bought_since", type_=BigInteger),
                (redeemed & (events.c.campaign_id == bindparam("campaign"))) | (ordered & earlier),
            )
        )
        self._sticky, self._refused = Lookup(log, standing), Lookup(log, gone)
        self._past = Lookup(log, union_all(withheld, offered, bought))
        self._by_id = select(decisions).where(log.among(_ID, "ids"))
        # As one value: to bind thirty for each row takes longer than to insert them.
        rows = cast(bindparam("rows", type_=Text), postgresql.JSON)
        given = func.json_to_recordset(rows).table_valued(
            *(column(c.name, c.type) for c in decisions.columns)
        )
        self._insert = (
            postgresql.insert(decisions)
            .from_select(decisions.columns.keys(), select(given.render_derived(with_types=True)))
            .on_conflict_do_nothing(
                index_elements=["campaign_id", "customer_id", "window_id"],
                index_where=decisions.c.sticky,
            )
            .returning(_ID)
        )
        # SQLite takes the values of these columns as they are: to bind them one by one through
        # SQLAlchemy takes longer than to insert them.
        names = [column.name for column in decisions.columns]
        places = ", ".join("?" * len(names))
        self._plain = f"INSERT INTO decisions ({', '.join(names)}) VALUES ({places})"
        self._values = itemgetter(*names)
        self._lost = (
            update(decisions)
            .where(bindparam("id") == _ID)
            .values(
                sticky=False,
                action="none",
                reason=bindparam("why"),
                reserved_micros=0,
                reservation="none",
                expected_profit_micros=0,
                expected_cost_micros=0,
                valid_until=None,
            )
        )

    def sticky(
        self, connection: Connection, campaign: str, window: int, customers: Iterable[str]
    ) -> dict[str, Stored]:
        """The standing decision of each of these customers who has one, by customer id."""
        ids = self.log.values(customers)
        rows = self._sticky.rows(connection, campaign=campaign, window=window, ids=ids)
        return {row.customer_id: row for row in rows}

    def by_id(self, connection: Connection, ids: Iterable[str]) -> dict[str, Stored]:
        """Decisions by their id."""
        rows = connection.execute(self._by_id, {"ids": self.log.values(ids)})
        return {row.decision_id: row for row in rows}

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert decisions; returns the ids of those that another process was faster with.

        In SQLite none can be: the transaction has held the write lock since it looked.
        """
        if not rows:
            return set()
        if not self.log.postgres:
            connection.exec_driver_sql(self._plain, [self._values(row) for row in rows])
            return set()
        # In one order everywhere, so that two transactions never wait for each other.
        ordered = sorted(rows, key=lambda r: (r["campaign_id"], r["customer_id"], r["window_id"]))
        kept = set(connection.execute(self._insert, {"rows": _encode(ordered).decode()}).scalars())
        return {row["decision_id"] for row in rows} - kept

    def lose(self, connection: Connection, ids: Sequence[str], reason: str) -> None:
        """Turn offers that the budget did not bear at commit into none; the arm stays logged."""
        if ids:
            connection.execute(self._lost, [{"id": i, "why": reason} for i in ids])

    def refused(self, connection: Connection, hashes: Iterable[str]) -> dict[str, str]:
        """`consent` or `erased` of the customers, by hash, who withdrew consent or were erased."""
        rows = self._refused.rows(connection, ids=self.log.values(hashes))
        return {row.customer_hash: row.kind for row in rows}

    def gone(self, connection: Connection, salt: bytes, customers: Sequence[str]) -> dict[str, str]:
        """The same by customer id."""
        hashes = customer_hashes(salt, customers)
        return _named(self.refused(connection, hashes), hashes, customers)

    def refuse(self, connection: Connection, hashes: Iterable[str], kind: str, now: int) -> None:
        """Never contact these customers again. An erased one stays erased."""
        statement = self.log.insert(refusals)
        key = [refusals.c.customer_hash]
        if kind == "erased":
            statement = statement.on_conflict_do_update(
                index_elements=key, set_={"kind": kind, "at": now}
            )
        else:
            statement = statement.on_conflict_do_nothing(index_elements=key)
        rows = [{"customer_hash": h, "kind": kind, "at": now} for h in sorted(set(hashes))]
        if rows:
            connection.execute(statement, rows)

    def past(
        self,
        connection: Connection,
        campaign: str,
        salt: bytes,
        everyone: Sequence[str],
        fresh: Sequence[str],
        *,
        now: int,
        offered_since: int,
        bought_since: int,
    ) -> Past:
        """Who of everyone is gone; of those without a standing decision, offers that were decided
        after `offered_since`, and orders at or after `bought_since`."""
        found = Past({}, {}, set())
        hashes = customer_hashes(salt, everyone)
        gone = {}
        for row in self._past.rows(
            connection,
            campaign=campaign,
            hashes=self.log.values(hashes),
            ids=self.log.values(fresh),
            offered_since=offered_since,
            bought_since=bought_since,
        ):
            if row.fact == "gone":
                gone[row.who] = row.kind
            elif row.fact == "converted":
                found.converted.add(row.who)
            elif row.sent is not None or row.at > now - UNSENT:
                found.offers.setdefault(row.who, []).append(row.at)
        for times in found.offers.values():
            times.sort(reverse=True)
        return found._replace(gone=_named(gone, hashes, everyone))

    def of_customer(
        self, connection: Connection, customer: str, limit: int, after: tuple[int, str] | None
    ) -> list[Stored]:
        """Decisions of a customer, the newest first, after a place (time, id)."""
        statement = select(decisions).where(decisions.c.customer_id == customer)
        if after is not None:
            statement = statement.where(tuple_(decisions.c.decided_at, _ID) < tuple_(*after))
        statement = statement.order_by(decisions.c.decided_at.desc(), _ID.desc()).limit(limit)
        return list(connection.execute(statement))

    def last_decided(self, connection: Connection) -> int:
        """The time of the newest decision, 0 without any."""
        newest = select(func.max(_ID))
        row = connection.execute(
            select(decisions.c.decided_at).where(newest.scalar_subquery() == _ID)
        ).scalar()
        return int(row or 0)


def hold_salt(log: Log, fingerprint: str) -> str:
    """The fingerprint that this log's draws follow from: the given one, if there was none yet."""
    with log.write() as connection:
        statement = log.insert(facts).on_conflict_do_nothing(index_elements=[facts.c.name])
        connection.execute(statement, {"name": "salt", "value": fingerprint})
        found = connection.execute(select(facts.c.value).where(facts.c.name == "salt")).scalar_one()
    return str(found)
