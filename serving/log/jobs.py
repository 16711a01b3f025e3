"""Jobs in the log: queued by servers, taken by one worker at a time under a lease.

Leases run by the time of the database, which all workers share. Every statement of a worker asks
whether it still holds the lease: one that was thought dead can't write after another has taken its
job up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import BigInteger, case, func, literal_column, or_, select, update
from sqlalchemy import cast as as_type
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement, text

from serving.log.engine import Log
from serving.log.retention import RESULTS
from serving.log.schema import jobs

State = Literal["queued", "running", "committing", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = (
    "queued", "running", "committing", "succeeded", "failed", "cancelled",
)  # fmt: skip
ATTEMPTS = 3
QUEUED = 5
_WORKED = jobs.c.state.in_(("running", "committing"))
_LOCK = 3_177_204_392


@dataclass(frozen=True)
class Job:
    """A job; times in microseconds. `request` is the JSON that it was asked with."""

    job_id: str
    kind: str
    state: State
    campaign_id: str
    key_id: str
    request: str
    attempt: int
    rows_done: int
    rows_total: int | None
    error: str | None
    created_at: int
    finished_at: int | None
    decided_at: int | None

    @property
    def expires_at(self) -> int | None:
        """When its results go; None while it is not finished."""
        return None if self.finished_at is None else self.finished_at + RESULTS

    def expired(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now


_FIELDS = tuple(Job.__dataclass_fields__)
_COLUMNS = tuple(jobs.c[name] for name in _FIELDS)


def _job(row: Any) -> Job:
    return Job(**row._mapping)


class Jobs:
    """Statements on the jobs of one log, on a connection of a transaction."""

    def __init__(self, log: Log) -> None:
        self._log = log
        # Microseconds of Unix time, by the clock of the database.
        self._clock: ColumnElement[int] = (
            as_type(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
            if log.postgres
            else as_type(
                (func.julianday("now") - literal_column("2440587.5")) * 86_400_000_000, BigInteger
            )
        )

    # Of servers

    def add(
        self,
        connection: Connection,
        job_id: str,
        campaign_id: str,
        key_id: str,
        request: str,
        now: int,
        kind: str = "audience",
    ) -> Literal["added", "job_running", "too_many_jobs"]:
        """Queue a job, unless the campaign has an unfinished one, or the key too many queued."""
        if self._log.postgres:  # SQLite holds its write lock already
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        waiting = connection.execute(
            select(func.count()).where(jobs.c.key_id == key_id, jobs.c.state == "queued")
        ).scalar_one()
        statement = self._log.insert(jobs).on_conflict_do_nothing().returning(jobs.c.job_id)
        row = {
            "job_id": job_id,
            "kind": kind,
            "state": "queued",
            "campaign_id": campaign_id,
            "key_id": key_id,
            "request": request,
            "attempt": 0,
            "rows_done": 0,
            "created_at": now,
        }
        if waiting >= QUEUED:
            return "too_many_jobs"
        if connection.execute(statement, row).first() is None:
            return "job_running"
        return "added"

    def get(self, connection: Connection, job_id: str) -> Job | None:
        row = connection.execute(select(*_COLUMNS).where(jobs.c.job_id == job_id)).first()
        return None if row is None else _job(row)

    def page(
        self, connection: Connection, after: tuple[int, str] | None, limit: int, now: int
    ) -> list[Job]:
        """Jobs that have not expired, the newest first, after a place (time, id)."""
        statement = select(*_COLUMNS).where(
            or_(jobs.c.finished_at.is_(None), jobs.c.finished_at > now - RESULTS)
        )
        if after is not None:
            at, last = after
            statement = statement.where(
                or_(
                    jobs.c.created_at < at,
                    (jobs.c.created_at == at) & (jobs.c.job_id < last),
                )
            )
        statement = statement.order_by(jobs.c.created_at.desc(), jobs.c.job_id.desc())
        return [_job(row) for row in connection.execute(statement.limit(limit))]

    def cancel(self, connection: Connection, job_id: str, now: int) -> bool:
        """Cancel a job that has not begun to commit; False where it has, or is finished."""
        done = connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id, jobs.c.state.in_(("queued", "running")))
            .values(state="cancelled", finished_at=now, owner=None, lease_until=None)
        )
        return done.rowcount == 1

    def counts(self, connection: Connection, now: int) -> dict[State, int]:
        """How many jobs stand in each state, of those that have not expired."""
        rows = connection.execute(
            select(jobs.c.state, func.count())
            .where(or_(jobs.c.finished_at.is_(None), jobs.c.finished_at > now - RESULTS))
            .group_by(jobs.c.state)
        )
        found = dict.fromkeys(STATES, 0)
        found.update({cast(State, state): count for state, count in rows})
        return found

    def waiting_since(self, connection: Connection) -> int | None:
        """When the oldest job was queued that nobody has taken up."""
        found = connection.execute(
            select(func.min(jobs.c.created_at)).where(jobs.c.state == "queued")
        ).scalar()
        return None if found is None else int(found)

    def with_results(self, connection: Connection, now: int) -> set[str]:
        """Jobs whose results must stay, or that may yet have some."""
        rows = connection.execute(
            select(jobs.c.job_id).where(
                or_(
                    jobs.c.finished_at.is_(None),
                    (jobs.c.state == "succeeded") & (jobs.c.finished_at > now - RESULTS),
                )
            )
        )
        return set(rows.scalars())

    # Of workers

    def any_open(self, connection: Connection) -> bool:
        """Whether there is a job to take up."""
        found = connection.execute(select(jobs.c.job_id).where(self._open()).limit(1)).first()
        return found is not None

    def claim(self, connection: Connection, owner: str, seconds: float, now: int) -> Job | None:
        """Take the oldest job that nobody works on; None where there is none. A job whose worker
        has vanished three times is failed."""
        lapsed = _WORKED & (jobs.c.lease_until < self._clock)
        connection.execute(
            update(jobs)
            .where(lapsed, jobs.c.attempt >= ATTEMPTS)
            .values(state="failed", error="attempts", finished_at=now, owner=None, lease_until=None)
        )
        oldest = (
            select(jobs.c.job_id)
            .where(self._open())
            .order_by(jobs.c.created_at, jobs.c.job_id)
            .limit(1)
        )
        if self._log.postgres:
            oldest = oldest.with_for_update(skip_locked=True)
        job_id = connection.execute(oldest).scalar()
        if job_id is None:
            return None
        row = connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id)
            .values(
                state=case((jobs.c.state == "queued", "running"), else_=jobs.c.state),
                attempt=jobs.c.attempt + 1,
                owner=owner,
                lease_until=self._clock + int(seconds * 1_000_000),
            )
            .returning(*_COLUMNS)
        ).one()
        return _job(row)

    def hold(
        self,
        connection: Connection,
        job_id: str,
        owner: str,
        seconds: float,
        changes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Go on holding a job, and write down its progress; False where the lease is another's by
        now, or the job was cancelled."""
        done = connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id, jobs.c.owner == owner, _WORKED)
            .values(lease_until=self._clock + int(seconds * 1_000_000), **(changes or {}))
        )
        return done.rowcount == 1

    def finish(
        self,
        connection: Connection,
        job_id: str,
        owner: str,
        now: int,
        state: Literal["succeeded", "failed"],
        error: str | None = None,
    ) -> bool:
        """End a job; False where it is not this worker's any more."""
        done = connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id, jobs.c.owner == owner, _WORKED)
            .values(state=state, error=error, finished_at=now, owner=None, lease_until=None)
        )
        return done.rowcount == 1

    def give_back(self, connection: Connection, job_id: str, owner: str, attempt: int) -> None:
        """Let go of a job at once, for another attempt, after so many that count."""
        connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id, jobs.c.owner == owner, _WORKED)
            .values(lease_until=0, attempt=attempt)
        )

    def abandon(self, connection: Connection, owner: str) -> None:
        """Let go of whatever a worker held that is known to have ended."""
        connection.execute(update(jobs).where(jobs.c.owner == owner, _WORKED).values(lease_until=0))

    def _open(self) -> ColumnElement[bool]:
        return or_(jobs.c.state == "queued", _WORKED & (jobs.c.lease_until < self._clock))
