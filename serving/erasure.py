"""Erase a customer from the log: the id goes, what was learned stays."""

from __future__ import annotations

import secrets

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from serving.evaluation import moment, timestamp
from serving.log.schema import campaign_budget, decisions, erasures, events
from serving.log.store import Store, customer_hash
from serving.resources import ErasureAnswer
from serving.salt import Salt

# Old snapshots and files are gone by then.
COMPLETE = 30 * 86_400_000_000


def erase(
    store: Store, salt: Salt, customer_id: str, key_id: str, now: int, connection: Connection
) -> ErasureAnswer:
    """Tombstone a customer; again, it is the same erasure.

    Decisions and events get a random name in place of the id. Reservations of open offers are
    given back, since such an offer must not be sent any more.
    """
    name = customer_hash(salt.value, customer_id)
    statement = store.log.insert(erasures).on_conflict_do_nothing(
        index_elements=[erasures.c.customer_hash]
    )
    connection.execute(
        statement,
        {
            "erasure_id": f"er-{secrets.token_hex(8)}",
            "customer_hash": name,
            "key_id": key_id,
            "requested_at": now,
            "complete_by": now + COMPLETE,
        },
    )
    store.refuse(connection, [name], "erased", now)
    _release(connection, customer_id)
    surrogate = f"erased-{secrets.token_hex(12)}"
    for table in (decisions, events):
        connection.execute(
            update(table).where(table.c.customer_id == customer_id).values(customer_id=surrogate)
        )
    row = connection.execute(select(erasures).where(erasures.c.customer_hash == name)).one()
    return ErasureAnswer(
        row.erasure_id,
        "tombstoned",
        timestamp(moment(row.requested_at)),
        timestamp(moment(row.complete_by)),
    )


def _release(connection: Connection, customer_id: str) -> None:
    """Give back what the customer's open offers hold of budgets."""
    freed = connection.execute(
        update(decisions)
        .where(decisions.c.customer_id == customer_id, decisions.c.reservation == "held")
        .values(reservation="released")
        .returning(decisions.c.campaign_id, decisions.c.reserved_micros)
    ).all()
    totals: dict[str, int] = {}
    for campaign, amount in freed:
        totals[campaign] = totals.get(campaign, 0) + amount
    for campaign, amount in sorted(totals.items()):
        connection.execute(
            update(campaign_budget)
            .where(campaign_budget.c.campaign_id == campaign)
            .values(committed_micros=campaign_budget.c.committed_micros - amount)
        )
