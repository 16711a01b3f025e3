"""Events of campaigns: judged row by row, each once, whatever order they come in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET
from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from serving.log import ledger
from serving.log.engine import Log
from serving.log.schema import campaigns, decisions, events
from serving.log.store import Store, customer_hash
from serving.resources import EventBody, EventCode, EventResult

OF_DECISION = frozenset({"sent", "opened", "clicked", "redeemed"})
AHEAD = 300 * 1_000_000
BACK = 90 * 86_400 * 1_000_000


@dataclass(frozen=True)
class Row:
    """A readable row of a request: its place, what it says, and when that was, microseconds."""

    index: int
    event: EventBody
    at: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self.event)).hexdigest()


def rejected(
    index: int, event_id: str | None, code: EventCode, field: str | None = None
) -> EventResult:
    pointer = f"#/events/{index}" + (f"/{field}" if field else "")
    return EventResult(index, event_id, "rejected", code, pointer)


def fault(row: Row, now: int) -> EventResult | None:
    """What is wrong with a row by itself, if anything."""
    event, wrong = row.event, None
    named = event.decision_id is not UNSET
    if event.type in OF_DECISION and not named:
        wrong = "decision_id"
    elif event.type not in OF_DECISION and event.customer_id is UNSET:
        wrong = "customer_id"
    elif event.cost_micros is not UNSET and event.type != "redeemed":
        wrong = "cost_micros"
    elif event.value_micros is not UNSET and event.type not in ("ordered", "redeemed"):
        wrong = "value_micros"
    if wrong is not None:
        return rejected(row.index, event.event_id, "validation", wrong)
    if row.at > now + AHEAD:
        return rejected(row.index, event.event_id, "in_future", "occurred_at")
    if row.at < now - BACK:
        return rejected(row.index, event.event_id, "too_old", "occurred_at")
    return None


def take(
    store: Store,
    salt: bytes,
    bounds: Mapping[str, int],
    rows: Sequence[Row],
    now: int,
    connection: Connection,
) -> list[EventResult]:
    """Store the rows that are new and sound, with all that follows from them; one result each.

    bounds: what an offer of a coupon may cost at most, millionths, as far as there is a bound.
    """
    log = store.log
    results: dict[int, EventResult] = {}
    stored = _stored(log, connection, [row.event.event_id for row in rows])
    named = {str(r.event.decision_id) for r in rows if r.event.decision_id is not UNSET}
    known = store.by_id(connection, sorted(named))
    gone = _erased(store, salt, connection, rows)
    bounded = _bounded(connection, rows, known)
    fresh: list[tuple[Row, dict[str, Any]]] = []
    for row in rows:
        event = row.event
        wrong = fault(row, now)
        if wrong is None and event.event_id in stored:
            same = stored[event.event_id] == row.digest
            wrong = (
                EventResult(row.index, event.event_id, "duplicate")
                if same
                else rejected(row.index, event.event_id, "event_id_reused", "event_id")
            )
        decision = known.get(str(event.decision_id)) if event.decision_id is not UNSET else None
        if wrong is None and event.customer_id is not UNSET and str(event.customer_id) in gone:
            wrong = rejected(row.index, event.event_id, "unknown_customer", "customer_id")
        if wrong is None and event.decision_id is not UNSET:
            if decision is None:
                wrong = rejected(row.index, event.event_id, "unknown_decision", "decision_id")
            elif event.customer_id not in (UNSET, decision.customer_id):
                wrong = rejected(row.index, event.event_id, "unknown_customer", "customer_id")
            elif event.type == "redeemed" and decision.action != "offer":
                wrong = rejected(row.index, event.event_id, "not_an_offer", "decision_id")
            elif decision.campaign_id in bounded and _dearer(event, decision, bounds):
                wrong = rejected(row.index, event.event_id, "cost_too_high", "cost_micros")
        if wrong is not None:
            results[row.index] = wrong
            continue
        stored[event.event_id] = row.digest
        fresh.append((row, _columns(row, decision, now)))
        results[row.index] = EventResult(row.index, event.event_id, "accepted")
    late = _insert(log, connection, [columns for _, columns in fresh])
    for row, _ in fresh:
        if row.event.event_id in late:  # Another process was faster.
            results[row.index] = EventResult(row.index, row.event.event_id, "duplicate")
    kept = [(row, columns) for row, columns in fresh if row.event.event_id not in late]
    _follow(store, salt, connection, kept, known, now)
    return [results[row.index] for row in rows]


def _bounded(connection: Connection, rows: Sequence[Row], known: Mapping[str, Any]) -> set[str]:
    """Of the campaigns whose redemptions came to more than was reserved, those that reserve the
    worst case: their cap holds to the cent."""
    dear = {
        decision.campaign_id
        for row in rows
        if (decision := known.get(str(row.event.decision_id))) is not None
        and _dearer(row.event, decision, {})
    }
    if not dear:
        return set()
    found = connection.execute(
        select(campaigns.c.campaign_id, campaigns.c.resource).where(
            campaigns.c.campaign_id.in_(sorted(dear))
        )
    )
    return {
        row.campaign_id
        for row in found
        if (json.loads(row.resource).get("budget") or {}).get("mode") == "worst_case"
    }


def _dearer(event: EventBody, decision: Any, bounds: Mapping[str, int]) -> bool:
    """Whether an offer came to cost more than was reserved for it, and than it can cost."""
    bound = max(decision.reserved_micros, bounds.get(decision.arm, 0))
    return event.cost_micros is not UNSET and event.cost_micros > bound


def _erased(store: Store, salt: bytes, connection: Connection, rows: Sequence[Row]) -> set[str]:
    """The customers named in rows who were erased: nothing is stored under their id again."""
    named = {str(r.event.customer_id) for r in rows if r.event.customer_id is not UNSET}
    hashes = {customer_hash(salt, customer): customer for customer in named}
    kinds = store.refused(connection, hashes)
    return {hashes[key] for key, kind in kinds.items() if kind == "erased"}


def _columns(row: Row, decision: Any, now: int) -> dict[str, Any]:
    event = row.event

    def given(value: Any) -> Any:
        return None if value is UNSET else value

    return {
        "event_id": event.event_id,
        "digest": row.digest,
        "type": event.type,
        "decision_id": given(event.decision_id),
        "customer_id": given(event.customer_id) if decision is None else decision.customer_id,
        "campaign_id": None if decision is None else decision.campaign_id,
        "arm": None if decision is None else decision.arm,
        "occurred_at": row.at,
        "received_at": now,
        "value_micros": given(event.value_micros),
        "cost_micros": given(event.cost_micros),
    }


def _stored(log: Log, connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    statement = select(events.c.event_id, events.c.digest).where(
        log.among(events.c.event_id, "ids")
    )
    rows = connection.execute(statement, {"ids": log.values(ids)})
    return {row.event_id: row.digest for row in rows}


def _insert(log: Log, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert events; returns the ids that were there after all."""
    if not rows:
        return set()
    ordered = sorted(rows, key=lambda row: str(row["event_id"]))
    statement = log.insert(events).on_conflict_do_nothing(index_elements=[events.c.event_id])
    if not log.postgres:
        connection.execute(statement, ordered)
        return set()
    kept = set(connection.execute(statement.returning(events.c.event_id), ordered).scalars())
    return {str(row["event_id"]) for row in ordered} - kept


def _follow(
    store: Store,
    salt: bytes,
    connection: Connection,
    kept: Sequence[tuple[Row, Mapping[str, Any]]],
    known: Mapping[str, Any],
    now: int,
) -> None:
    """What events change: when an offer was first sent, what it cost, who withdrew consent."""
    sent: dict[str, int] = {}
    costs: dict[str, int] = {}
    gone = []
    for row, columns in kept:
        decision_id = columns["decision_id"]
        if row.event.type == "sent":
            sent[decision_id] = min(sent.get(decision_id, row.at), row.at)
        elif row.event.type == "redeemed":
            expected = known[decision_id].expected_cost_micros
            cost = columns["cost_micros"]
            # Of several redemptions of one coupon the dearest counts, in any order.
            cost = expected if cost is None else cost
            costs[decision_id] = max(costs.get(decision_id, 0), cost)
        elif row.event.type == "unsubscribed":
            gone.append(customer_hash(salt, columns["customer_id"]))
    for decision_id, at in sorted(sent.items()):
        connection.execute(
            update(decisions)
            .where(
                decisions.c.decision_id == decision_id,
                decisions.c.sent_at.is_(None) | (decisions.c.sent_at > at),
            )
            .values(sent_at=at)
        )
    ledger.realise(connection, costs)
    store.refuse(connection, gone, "consent", now)


Status = Literal["accepted", "duplicate", "rejected"]


def count(results: Sequence[EventResult], status: Status) -> int:
    return sum(result.status == status for result in results)
