"""What is kept for how long, and removed after it."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.engine import Connection

from serving.log import idempotency
from serving.log.schema import decisions, erasures, events, jobs

DAY = 86_400_000_000
DECISIONS = EVENTS = 730 * DAY
AUDIT = 5 * 365 * DAY
# Results are there for 7 days; for 30 more their addresses say that they are gone.
RESULTS = 7 * DAY
JOBS = RESULTS + 30 * DAY


def purge(connection: Connection, now: int) -> dict[str, int]:
    """Remove what is past its time; returns the rows removed, by table. What decisions cost stays
    counted in the campaigns' budgets."""
    return {
        "events": connection.execute(
            delete(events).where(events.c.occurred_at < now - EVENTS)
        ).rowcount,
        "decisions": connection.execute(
            delete(decisions).where(
                decisions.c.decided_at < now - DECISIONS, decisions.c.reservation != "held"
            )
        ).rowcount,
        "erasures": connection.execute(
            delete(erasures).where(erasures.c.requested_at < now - AUDIT)
        ).rowcount,
        "idempotency": idempotency.forget(connection, now),
        "jobs": connection.execute(delete(jobs).where(jobs.c.finished_at < now - JOBS)).rowcount,
    }
