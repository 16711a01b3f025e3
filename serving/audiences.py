"""Everyone of a snapshot who passes a filter: scored, allocated together, decided in chunks.

The allocation looks at the whole audience once, with what is left of the budget. Each chunk is then
decided as single requests are: by the desk, in one transaction that looks at the log again, inserts
and charges. What the log has learned in between (a pause, a withdrawal of consent, a decision of
another server) holds there, so a plan never offers what a single request would refuse.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import compress
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlalchemy.engine import Connection

from serving import schemas
from serving.campaign_rules import evaluate_filter
from serving.desk import Desk, Group, RulesOutdated, restored
from serving.evaluation import MICROS, Judged, judge, micros, profile_states, settle, shortest
from serving.log import stock
from serving.log.campaigns import Entry
from serving.rules import Rules
from serving.scorer import Scorer
from uplift.allocation import of_arm
from uplift.data import BoolArray, FloatArray
from uplift.limits import Limit
from uplift.policy import Decisions, decide

CHUNK = 5_000
Rows = npt.NDArray[np.int64]
T = TypeVar("T")

DECISIONS = pa.schema(
    [
        ("customer_id", pa.string()),
        ("decision_id", pa.string()),
        ("action", pa.string()),
        ("arm", pa.string()),
        ("coupon_id", pa.string()),
        ("reason", pa.string()),
        ("is_holdout", pa.bool_()),
        ("is_exploration", pa.bool_()),
        ("assignment_prob", pa.float64()),
        ("response_propensity", pa.float64()),
        ("uplift", pa.float64()),
        ("expected_incremental_profit_micros", pa.int64()),
        ("expected_cost_micros", pa.int64()),
        ("profile_state", pa.string()),
        ("sticky_hit", pa.bool_()),
        ("valid_until", pa.string()),
        ("retry_at", pa.string()),
        ("warnings", pa.string()),
    ]
)


def select_rows(scorer: Scorer, wanted: Any | None) -> Rows:
    """(n,) positions of the customers whom a filter lets through, ascending.

    Raises FilterError.
    """
    people = scorer.snapshot.population
    if wanted is None:
        return np.arange(len(people), dtype=np.int64)
    return np.flatnonzero(evaluate_filter(wanted, people, scorer))


def chunks(rows: Rows, size: int = CHUNK) -> Iterator[Rows]:
    """The rows, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class _Competing(NamedTuple):
    """What the allocation needs of n customers: positions, (n, K) worth and reserved cost in
    millionths, arms that are left, reasons before the draw; (K,) arms that the campaign has."""

    rows: Rows
    worth: FloatArray
    reserve: FloatArray
    eligible: BoolArray
    reason: npt.NDArray[np.object_]
    offered: BoolArray


@dataclass(frozen=True)
class Planned:
    """What everyone of an audience gets who had no standing decision: their positions in the
    population, ascending, and decisions in their order, whose money is in millionths reserved."""

    rows: Rows
    made: Decisions


class Audience:
    """One campaign, decided for many customers as of one moment.

    job_id: names the decisions, so that an attempt finds again what an earlier one has stored.
    """

    def __init__(
        self, desk: Desk, scorer: Scorer, rules: Rules, entry: Entry, now: datetime, job_id: str
    ) -> None:
        self.desk, self.scorer, self.rules, self.entry = desk, scorer, rules, entry
        self.now, self._job_id = now, job_id
        self._found: list[_Competing] = []

    def customers(self, rows: Rows) -> list[str]:
        """Ids of these positions."""
        ids: list[str] = self.scorer.snapshot.population.customer_id[rows].astype(str).tolist()
        return ids

    # The whole

    def add(self, connection: Connection, rows: Rows) -> None:
        """Take customers into the plan, but for those who have a decision or were erased."""
        group, _ = self._looked(connection, rows)
        if not group.fresh:
            return
        found = self._judged(group, self.entry.budget.left)
        worth = self.rules.campaign.worth(found.reward)
        if found.toll is not None:
            worth = worth - found.toll
        self._found.append(
            _Competing(
                found.rows,
                worth * MICROS,
                found.reserve.astype(np.float64),
                found.eligible,
                found.reason,
                found.offered,
            )
        )

    def plan(self, connection: Connection) -> Planned:
        """Allocate what is left of budget and stock, by net value per cost, among all that were
        added; refusals before the draws, holdouts and exploration as everywhere.

        Raises RulesOutdated when the campaign was changed meanwhile.
        """
        self.entry = self._entry(connection)
        found, campaign = self._found, self.rules.window(self.now).campaign
        self._found = []
        if not found:
            nobody = np.zeros(0, dtype=np.int64)
            return Planned(nobody, self._nothing())
        offered = found[0].offered
        columns = zip(*(one[:-1] for one in found), strict=True)
        rows, worth, reserve, eligible, reasons = (np.concatenate(each) for each in columns)
        del found, columns
        pieces = stock.left(self.desk.log, connection, campaign.limited)
        arms = campaign.arms
        left = self.entry.budget.left
        made = decide(
            self.customers(rows),
            worth,
            reserve,
            shares=campaign.shares,
            salt=self.scorer.salt.value,
            campaign_id=campaign.campaign_id,
            window_id=campaign.window_id,
            budget=None if left is None else float(left),
            min_profit=campaign.min_profit * MICROS,
            eligible=eligible,
            offered=offered,
            in_stock=np.array([pieces.get(arm, 1) > 0 for arm in arms], dtype=bool),
            limits=[
                Limit(f"stock of {arm}", np.eye(len(arms))[k : k + 1], float(pieces[arm]))
                for k, arm in enumerate(arms)
                if pieces.get(arm)
            ],
            exploration_only=campaign.exploration_only,
            pre_reasons=reasons,
        )
        return Planned(rows, made)

    def _entry(self, connection: Connection) -> Entry:
        """The campaign as it stands. Raises RulesOutdated."""
        entry = self.desk.campaigns.get(connection, self.rules.campaign_id)
        if entry is None or entry.version != self.rules.version:
            raise RulesOutdated
        return entry

    def _nothing(self) -> Decisions:
        campaign, arms = self.rules.campaign, len(self.scorer.snapshot.arms)
        return decide(
            [], np.zeros((0, arms)), np.zeros((0, arms)), shares=campaign.shares,
            salt=self.scorer.salt.value, campaign_id=campaign.campaign_id,
        )  # fmt: skip

    # A chunk

    def preview(
        self, connection: Connection, planned: Planned, rows: Rows
    ) -> list[schemas.Decision]:
        """Decisions as they would be, or stand; nothing is changed."""
        group, customers = self._looked(connection, rows)
        self._settle(group, planned)
        return self._items(group, customers, {}, stored=False)

    def commit(
        self, connection: Connection, planned: Planned, rows: Rows, *, resumed: bool
    ) -> list[schemas.Decision]:
        """Store and charge what is planned for these customers, in the caller's transaction;
        returns one decision for each who was not erased. resumed: an earlier attempt may have
        stored some of it.

        Raises RulesOutdated when the campaign was changed since the plan, or somebody is not in
        it.
        """
        entry = self._entry(connection)
        group, customers = self._looked(connection, rows)
        group.budget = entry.budget
        mine: dict[str, Any] = {}
        if resumed and group.fresh:
            names = self._names(group.fresh)
            stored = self.desk.store.by_id(connection, names)
            mine = {
                customer: stored[name]
                for customer, name in zip(group.fresh, names, strict=True)
                if name in stored
            }
            if mine:
                self._keep_fresh(group, [customer not in mine for customer in group.fresh])
        group.ids = self._names(group.fresh)
        self._settle(group, planned)
        self.desk.keep(connection, [group])
        return self._items(group, customers, mine, stored=True)

    def _looked(self, connection: Connection, rows: Rows) -> tuple[Group, list[str]]:
        """What the log knows of these customers, and who of them was not erased."""
        group = Group(self.scorer, self.rules, self.entry.budget, self.now)
        everyone = self.customers(rows)
        self.desk.look(connection, group, everyone)
        if "erased" in group.gone.values():
            self._keep_fresh(group, [group.gone.get(i) != "erased" for i in group.fresh])
            everyone = [i for i in everyone if group.gone.get(i) != "erased"]
        return group, everyone

    def _keep_fresh(self, group: Group, keep: Sequence[bool]) -> None:
        assert group.facts is not None
        group.fresh = list(compress(group.fresh, keep))
        group.facts = group.facts.some(keep)

    def _judged(self, group: Group, left: int | None) -> Judged:
        return judge(
            self.scorer,
            self.rules,
            group.fresh,
            self.now,
            facts=group.facts,
            left=left,
            active=group.active,
            in_stock=group.in_stock,
        )

    def _settle(self, group: Group, planned: Planned) -> None:
        """Give the fresh customers of a group what is planned for them, but for what stands
        against it by now."""
        if not group.fresh:
            return
        found = self._judged(group, None)
        at = np.searchsorted(planned.rows, found.rows)
        at = np.minimum(at, max(len(planned.rows) - 1, 0))
        if not len(planned.rows) or (planned.rows[at] != found.rows).any():
            raise RulesOutdated
        made = _refused(_some(planned.made, at), found.reason)
        made = replace(
            made,
            expected_incremental_profit=np.where(made.is_offer, of_arm(found.reward, made.arm), 0),
            expected_cost=np.where(made.is_offer, of_arm(found.cost, made.arm), 0.0),
        )
        group.made = settle(self.scorer, self.rules, group.fresh, self.now, found, made)

    def _items(
        self, group: Group, customers: Sequence[str], mine: dict[str, Any], *, stored: bool
    ) -> list[schemas.Decision]:
        place = {customer: i for i, customer in enumerate(group.fresh)}
        closed = self.rules.closed(self.now, group.active)
        items = []
        for index, customer in enumerate(customers):
            row = group.known.get(customer) or mine.get(customer)
            if row is None:
                assert group.made is not None
                i = place[customer]
                decision_id = group.ids[i] if stored else None
                item = group.made.items[i]
                item = msgspec.structs.replace(item, index=index, decision_id=decision_id)
            else:
                why = self.desk.overruled(group, row, customer, closed)
                own = row.decision_id == self._names([customer])[0]
                item = restored(row, index, customer, why, not own)
            items.append(item)
        return items

    def _names(self, customers: Sequence[str]) -> list[str]:
        """Decision ids: of the moment, as everywhere, and of job and customer, so that another
        attempt comes to the same."""
        stamp = f"d-{micros(self.now) // 1000:011x}"
        prefix, key = f"job\x1f{self._job_id}\x1f".encode(), self.scorer.salt.value
        return [
            stamp + hmac.digest(key, prefix + customer.encode(), "sha256").hex()[:20]
            for customer in customers
        ]

    # Scores alone

    def scores(self, connection: Connection, rows: Rows) -> pa.Table:
        """Scores of these customers, but for those who were erased."""
        people = self.scorer.snapshot.population
        _, ids = self._looked(connection, rows)
        rows, known = people.find(ids)
        columns: dict[str, Any] = {
            "customer_id": ids,
            "profile_state": profile_states(self.scorer, rows, known),
            "response_propensity": shortest(people.scores.response[rows]),
        }
        for k, arm in enumerate(self.scorer.model.bundle.arms):
            columns[f"uplift_{arm}"] = shortest(people.scores.cate[rows, k])
            for name, values in (("profit", people.scores.reward), ("cost", people.scores.cost)):
                money = values[rows, k].astype(np.float64) * MICROS
                full = "expected_incremental_profit" if name == "profit" else "expected_cost"
                columns[f"{full}_micros_{arm}"] = pa.array(
                    np.rint(np.nan_to_num(money)).astype(np.int64), mask=~np.isfinite(money)
                )
        return pa.table(columns, schema=scores_schema(self.scorer.model.bundle.arms))


def scores_schema(arms: Sequence[str]) -> pa.Schema:
    """The columns of an audience that is scored and not decided."""
    names: list[tuple[str, Any]] = [
        ("customer_id", pa.string()),
        ("profile_state", pa.string()),
        ("response_propensity", pa.float64()),
    ]
    for arm in arms:
        names += [
            (f"uplift_{arm}", pa.float64()),
            (f"expected_incremental_profit_micros_{arm}", pa.int64()),
            (f"expected_cost_micros_{arm}", pa.int64()),
        ]
    return pa.schema(names)


def decisions_table(items: Sequence[schemas.Decision]) -> pa.Table:
    """Decisions as the columns of a result."""
    columns = {
        name: [getattr(item, name) for item in items]
        for name in DECISIONS.names
        if name not in ("reason", "warnings")
    }
    columns["reason"] = [item.reason.value for item in items]
    columns["warnings"] = [",".join(item.warnings) for item in items]
    return pa.table(columns, schema=DECISIONS)


def _refused(made: Decisions, reason: npt.NDArray[np.object_]) -> Decisions:
    """The same decisions, but control for certain where a reason precedes the draw."""
    now = np.array([one is not None for one in reason], dtype=bool)
    if not now.any():
        return made
    control = np.zeros(made.probs.shape[1])
    control[0] = 1.0
    return replace(
        made,
        arm=np.where(now, 0, made.arm),
        greedy=np.where(now, 0, made.greedy),
        is_offer=made.is_offer & ~now,
        reason=np.where(now, reason, made.reason),
        assignment_prob=np.where(now, 1.0, made.assignment_prob),
        probs=np.where(now[:, None], control, made.probs),
        eligible=made.eligible & ~now[:, None],
        is_holdout=made.is_holdout & ~now,
        is_exploration=made.is_exploration & ~now,
    )


def _some(columns: T, rows: Any) -> T:
    """The same dataclass with these rows of its arrays."""
    changed = {}
    for each in fields(columns):  # type: ignore[arg-type]
        value = getattr(columns, each.name)
        if isinstance(value, np.ndarray):
            changed[each.name] = value[rows]
    return replace(columns, **changed)  # type: ignore[type-var]
