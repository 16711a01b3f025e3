"""The budget of campaigns, counted down so that no number of servers can overspend it.

A grant is one conditional statement in the transaction that inserts the decisions it pays for:
what is read before could be spent by another process before it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, and_, bindparam, or_, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from serving.log.engine import Log
from serving.log.schema import campaign_budget as budget
from serving.log.schema import decisions

# A coupon may be redeemed and reported some days after it has expired.
RELEASE_AFTER = 7 * 86_400_000_000

_cost: ColumnElement[int] = bindparam("cost", type_=BigInteger)
_CHARGE = (
    update(budget)
    .where(
        budget.c.campaign_id == bindparam("id"),
        budget.c.state == "active",
        or_(
            budget.c.cap_micros.is_(None),
            budget.c.committed_micros + budget.c.realised_micros + _cost <= budget.c.cap_micros,
        ),
    )
    .values(committed_micros=budget.c.committed_micros + _cost)
)
_COLUMNS = (
    budget.c.campaign_id,
    budget.c.state,
    budget.c.cap_micros,
    budget.c.committed_micros,
    budget.c.realised_micros,
)
_LOCKED = select(*_COLUMNS).where(budget.c.campaign_id == bindparam("id")).with_for_update()


@dataclass(frozen=True)
class Budget:
    """What a campaign may spend and has promised, millionths; `cap` None: no limit."""

    state: str
    cap: int | None
    committed: int
    realised: int

    @property
    def active(self) -> bool:
        return self.state == "active"

    @property
    def left(self) -> int | None:
        """What may still be promised; 0 when more was realised than planned. None: no limit."""
        return None if self.cap is None else max(0, self.cap - self.committed - self.realised)

    @property
    def overshoot(self) -> int:
        return 0 if self.cap is None else max(0, self.committed + self.realised - self.cap)


def budgets(log: Log, connection: Connection, campaigns: Iterable[str]) -> dict[str, Budget]:
    """The budgets of these campaigns, as this transaction sees them."""
    statement = select(*_COLUMNS).where(log.among(budget.c.campaign_id, "ids"))
    rows = connection.execute(statement, {"ids": log.values(campaigns)})
    return {r.campaign_id: Budget(*r[1:]) for r in rows}


def locked(connection: Connection, campaign: str) -> Budget:
    """The budget of a campaign, which nobody else changes until this transaction ends."""
    row = connection.execute(_LOCKED, {"id": campaign}).one()
    return Budget(*row[1:])


def charge(connection: Connection, campaign: str, cost: int) -> bool:
    """Promise `cost` millionths; False if the campaign is not active or can't bear them."""
    return connection.execute(_CHARGE, {"id": campaign, "cost": cost}).rowcount == 1


def realise(connection: Connection, costs: Mapping[str, int]) -> None:
    """Move the reservations of redeemed decisions to what they came to cost; also of decisions
    whose reservation was released. Of several redemptions of one decision the dearest counts, so
    that their order does not matter.

    costs: actual cost in millionths by decision id.
    """
    changes: dict[str, tuple[int, int]] = {}
    for decision_id, cost in sorted(costs.items()):
        row = connection.execute(
            select(
                decisions.c.campaign_id,
                decisions.c.reservation,
                decisions.c.reserved_micros,
                decisions.c.realised_micros,
            )
            .where(decisions.c.decision_id == decision_id)
            .with_for_update()
        ).one()
        more = cost - row.realised_micros
        if row.reservation == "none" or (row.reservation == "realised" and more <= 0):
            continue
        connection.execute(
            update(decisions)
            .where(decisions.c.decision_id == decision_id)
            .values(reservation="realised", realised_micros=cost)
        )
        held = row.reserved_micros if row.reservation == "held" else 0
        freed, spent = changes.get(row.campaign_id, (0, 0))
        changes[row.campaign_id] = (freed + held, spent + more)
    _apply(connection, changes)


def release(connection: Connection, now: int) -> int:
    """Free what was reserved for offers that expired more than a week ago; returns how many."""
    gone = and_(decisions.c.reservation == "held", decisions.c.valid_until < now - RELEASE_AFTER)
    campaigns = connection.execute(select(decisions.c.campaign_id).where(gone).distinct())
    count = 0
    changes = {}
    for campaign in campaigns.scalars().all():
        freed = connection.execute(
            update(decisions)
            .where(gone, decisions.c.campaign_id == campaign)
            .values(reservation="released")
            .returning(decisions.c.reserved_micros)
        ).scalars()
        amounts = [int(amount) for amount in freed]
        count += len(amounts)
        changes[campaign] = (sum(amounts), 0)
    _apply(connection, changes)
    return count


def _apply(connection: Connection, changes: Mapping[str, tuple[int, int]]) -> None:
    # In the order of ids, so that two transactions never wait for each other.
    for campaign, (freed, spent) in sorted(changes.items()):
        connection.execute(
            update(budget)
            .where(budget.c.campaign_id == campaign)
            .values(
                committed_micros=budget.c.committed_micros - freed,
                realised_micros=budget.c.realised_micros + spent,
            )
        )
