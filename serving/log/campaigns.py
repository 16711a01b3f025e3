"""Campaigns in the log: resources with versions, and their state beside the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from serving.log.engine import Log
from serving.log.ledger import Budget
from serving.log.lookup import Lookup
from serving.log.schema import campaign_budget, campaigns

_BUDGET = (
    campaign_budget.c.state,
    campaign_budget.c.cap_micros,
    campaign_budget.c.committed_micros,
    campaign_budget.c.realised_micros,
)
_COLUMNS = (
    campaigns.c.campaign_id,
    campaigns.c.resource,
    campaigns.c.version,
    campaigns.c.configured,
    campaigns.c.paused_at,
    campaigns.c.created_at,
    *_BUDGET,
)
_SAME = campaign_budget.c.campaign_id == campaigns.c.campaign_id
_JOINED = select(*_COLUMNS).join(campaign_budget, _SAME)
_STATES = select(campaigns.c.campaign_id, campaigns.c.version, *_BUDGET).join(
    campaign_budget, _SAME
)


@dataclass(frozen=True)
class Entry:
    """A stored campaign; times in microseconds. `version` counts up with every change of the
    resource, not with pauses."""

    campaign_id: str
    resource: str
    version: int
    configured: bool
    paused_at: int | None
    created_at: int
    budget: Budget


class State(NamedTuple):
    """What every decision asks of a campaign: whether its rules are still those, and its budget."""

    version: int
    budget: Budget


def _entry(row: Any) -> Entry:
    return Entry(
        row.campaign_id,
        row.resource,
        row.version,
        row.configured,
        row.paused_at,
        row.created_at,
        Budget(row.state, row.cap_micros, row.committed_micros, row.realised_micros),
    )


class Campaigns:
    """Reads and changes of campaigns, on a connection of a transaction. Changes lock the campaign
    first and then its budget, so that two of them never wait for each other."""

    def __init__(self, log: Log) -> None:
        self._log = log
        wanted = log.among(campaigns.c.campaign_id, "ids")
        self._some = _JOINED.where(wanted)
        self._states = Lookup(log, _STATES.where(wanted))

    def get(self, connection: Connection, campaign_id: str) -> Entry | None:
        row = connection.execute(_JOINED.where(campaigns.c.campaign_id == campaign_id)).first()
        return None if row is None else _entry(row)

    def some(self, connection: Connection, ids: list[str]) -> dict[str, Entry]:
        """These campaigns by id, as far as they exist."""
        rows = connection.execute(self._some, {"ids": self._log.values(ids)})
        return {row.campaign_id: _entry(row) for row in rows}

    def states(self, connection: Connection, ids: list[str]) -> dict[str, State]:
        """What stands of these campaigns by id, as far as they exist."""
        rows = self._states.rows(connection, ids=self._log.values(ids))
        return {name: State(version, Budget(*budget)) for name, version, *budget in rows}

    def page(self, connection: Connection, after: str, limit: int | None) -> list[Entry]:
        """Campaigns in the order of their ids, after one; None: all of them."""
        statement = _JOINED.where(campaigns.c.campaign_id > after)
        rows = connection.execute(statement.order_by(campaigns.c.campaign_id).limit(limit))
        return [_entry(row) for row in rows]

    def create(
        self,
        connection: Connection,
        campaign_id: str,
        resource: str,
        cap: int | None,
        now: int,
        *,
        configured: bool = False,
    ) -> bool:
        """Add a campaign, active and with nothing spent; False if it is there already."""
        statement = self._log.insert(campaigns).on_conflict_do_nothing(
            index_elements=[campaigns.c.campaign_id]
        )
        row = {
            "campaign_id": campaign_id,
            "resource": resource,
            "version": 1,
            "configured": configured,
            "created_at": now,
            "updated_at": now,
        }
        if connection.execute(statement.returning(campaigns.c.campaign_id), row).first() is None:
            return False
        connection.execute(
            insert(campaign_budget),
            {
                "campaign_id": campaign_id,
                "state": "active",
                "cap_micros": cap,
                "committed_micros": 0,
                "realised_micros": 0,
            },
        )
        return True

    def replace(
        self,
        connection: Connection,
        entry: Entry,
        resource: str,
        cap: int | None,
        now: int,
        *,
        force: bool = False,
    ) -> bool:
        """Change a campaign; False if somebody else has changed it since `entry` was read, or if
        more is promised or spent than the new cap allows (`force`: then nothing more is granted).

        After False the caller rolls back.
        """
        committed = campaign_budget.c.committed_micros + campaign_budget.c.realised_micros
        bearable = [committed <= cap] if cap is not None and not force else []
        changed = connection.execute(
            update(campaigns)
            .where(
                campaigns.c.campaign_id == entry.campaign_id,
                campaigns.c.version == entry.version,
            )
            .values(resource=resource, version=entry.version + 1, updated_at=now)
        )
        if changed.rowcount != 1:
            return False
        limited = connection.execute(
            update(campaign_budget)
            .where(campaign_budget.c.campaign_id == entry.campaign_id, *bearable)
            .values(cap_micros=cap)
        )
        return limited.rowcount == 1

    def pause(self, connection: Connection, campaign_id: str, comment: str, now: int) -> None:
        """After the commit of this, no offer of the campaign commits. A second pause keeps the
        time of the first."""
        connection.execute(
            update(campaigns)
            .where(campaigns.c.campaign_id == campaign_id, campaigns.c.paused_at.is_(None))
            .values(paused_at=now, comment=comment)
        )
        connection.execute(
            update(campaign_budget)
            .where(campaign_budget.c.campaign_id == campaign_id)
            .values(state="paused")
        )

    def resume(self, connection: Connection, campaign_id: str) -> None:
        connection.execute(
            update(campaigns)
            .where(campaigns.c.campaign_id == campaign_id)
            .values(paused_at=None, comment=None)
        )
        connection.execute(
            update(campaign_budget)
            .where(campaign_budget.c.campaign_id == campaign_id)
            .values(state="active")
        )
