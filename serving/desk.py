"""Decisions on the log: what waits is decided together, inserted, charged and only then answered.

Two threads: the writer answers decisions that are logged, after their commit; the reader answers
dry runs, which change nothing and never wait for a commit. Small ones need none (`log.rounds`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from sqlalchemy.engine import Connection

from serving import schemas
from serving.evaluation import (
    Evaluated,
    Facts,
    envelope,
    evaluate,
    micros,
    moment,
    shown_time,
)
from serving.log import idempotency, stock
from serving.log.campaigns import Campaigns, State
from serving.log.idempotency import KeyReused, Once
from serving.log.ledger import Budget
from serving.log.store import Store, Stored, new_ids
from serving.payment import pay, refused
from serving.rules import Rules, Window
from serving.scorer import Scorer
from uplift.data import BoolArray
from uplift.policy import Reason

_encode = msgspec.json.Encoder().encode


class RulesOutdated(Exception):
    """The campaign has changed since the rules were read; read them again."""


class UnknownCampaign(Exception):
    """There is no such campaign."""


@dataclass(frozen=True)
class Ask:
    """A request for decisions. `once` with an Idempotency-Key."""

    scorer: Scorer
    rules: Rules
    customers: Sequence[schemas.CustomerRequest]
    request_id: str
    dry_run: bool
    once: Once | None = None

    @cached_property
    def ids(self) -> list[str]:
        return [customer.customer_id for customer in self.customers]


@dataclass(frozen=True)
class Answer:
    """The body, and what the metrics count."""

    body: bytes
    replayed: bool
    reasons: Mapping[str, int]


@dataclass
class Group:
    """What is asked of one campaign under one scorer in one transaction. `known`: standing
    decisions by customer; `fresh`: customers to decide for, whose decisions are `made` under `ids`;
    `twins`: customers whom another group of the transaction decides for, in the same campaign."""

    scorer: Scorer
    rules: Rules
    budget: Budget | None
    now: datetime
    asks: list[int] = field(default_factory=list)
    known: dict[str, Stored] = field(default_factory=dict)
    facts: Facts | None = None
    in_stock: BoolArray | None = None
    """(K,) arms of which a piece is left; None: as the configuration says."""
    fresh: list[str] = field(default_factory=list)
    made: Evaluated | None = None
    ids: list[str] = field(default_factory=list)
    """Decision ids of `fresh`, where they are stored."""
    twins: dict[str, Group] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    """Customers who must not be contacted, and why: consent or erased."""

    @cached_property
    def place(self) -> dict[str, int]:
        """Where each of the fresh customers stands."""
        return {customer: i for i, customer in enumerate(self.fresh)}

    @property
    def active(self) -> bool:
        return self.budget is None or self.budget.active

    @cached_property
    def window(self) -> Window:
        return self.rules.window(self.now)


class Desk:
    """Answers asks, on the connection of a transaction that the caller commits."""

    def __init__(self, store: Store, campaigns: Campaigns, last: int = 0) -> None:
        self.log, self.store, self.campaigns = store.log, store, campaigns
        self._last = last
        self._is_back = False
        self.steps_back = 0
        """How often the clock went back by more than a second."""

    def now(self, scorer: Scorer) -> datetime:
        """The wall clock, but never before a decision that was logged."""
        wall = micros(scorer.clock())
        was_back, self._is_back = self._is_back, wall < self._last - 1_000_000
        if self._is_back and not was_back:
            self.steps_back += 1
        self._last = max(self._last, wall)
        return moment(self._last)

    def behind(self, scorer: Scorer) -> timedelta:
        """How far the wall clock lies behind the last decision."""
        return timedelta(microseconds=max(0, self._last - micros(scorer.clock())))

    def answer(self, connection: Connection, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """Decide, insert, charge; an exception stands for the ask that it belongs to."""
        found: list[Answer | Exception | None] = [None] * len(asks)
        groups = self._grouped(connection, asks, found)
        taken: dict[tuple[str, str], Group] = {}
        for group in groups:
            self._look(connection, group, asks, taken)
            self._evaluate(group)
            group.ids = new_ids(len(group.fresh))
        self.keep(connection, groups)
        results = []
        for group in groups:
            for k in group.asks:
                ask = asks[k]
                body, result, reasons = self._render(group, ask)
                if ask.once is not None:
                    results.append((k, ask.once, result))
                found[k] = Answer(body, False, reasons)
        stale = idempotency.keep(
            self.log, connection, [(once, text) for _, once, text in results], self._last
        )
        for k, once, _ in results:
            if once.name in stale:  # Another process has answered it; the next try replays that.
                found[k] = RulesOutdated()
        return [one if one is not None else RulesOutdated() for one in found]

    def keep(self, connection: Connection, groups: Sequence[Group]) -> None:
        """Insert what was decided, and take pieces and charge for what was inserted; what others
        decided first, or there is no piece or money for, is known in the groups afterwards."""
        rows = [
            (group, row)
            for group in groups
            if group.made is not None
            for row in group.made.rows(group.ids)
        ]
        lost = self.store.add(connection, [row for _, row in rows])
        if lost:
            self._yield(connection, rows, lost)
        pay(connection, self.store, groups, lost)

    def preview(self, connection: Connection | None, asks: Sequence[Ask]) -> list[Any]:
        """Answers to dry runs: the standing decision, or what it would be. Without a connection
        nothing of the log is known."""
        found: list[Answer | Exception | None] = [None] * len(asks)
        if connection is not None:
            groups = self._grouped(connection, asks, found)
        else:
            groups = self._joined(asks, range(len(asks)), {})
        for group in groups:
            if connection is not None:
                self._look(connection, group, asks, {})
            else:
                group.fresh = list(dict.fromkeys(i for k in group.asks for i in asks[k].ids))
                self._hear(group, asks)
            self._evaluate(group)
            for k in group.asks:
                body, _, reasons = self._render(group, asks[k])
                found[k] = Answer(body, False, reasons)
        return list(found)

    def _grouped(
        self,
        connection: Connection,
        asks: Sequence[Ask],
        found: list[Answer | Exception | None],
    ) -> list[Group]:
        """Asks by campaign; those that can't or need not be decided get their answer at once."""
        wanted = sorted({ask.rules.campaign_id for ask in asks})
        states = self.campaigns.states(connection, wanted)
        once = [ask.once for ask in asks if ask.once is not None]
        past = {}
        if once:
            past = idempotency.earlier(connection, once, micros(self.now(asks[0].scorer)))
        seen: set[tuple[str, str, str]] = set()
        open_asks = []
        for k, ask in enumerate(asks):
            state = states.get(ask.rules.campaign_id)
            if state is None:
                found[k] = UnknownCampaign()
            elif state.version != ask.rules.version:
                found[k] = RulesOutdated()
            elif ask.once is None:
                open_asks.append(k)
            elif ask.once.name in past:
                body_sha256, result = past[ask.once.name]
                if body_sha256 != ask.once.body_sha256:
                    found[k] = KeyReused()
                else:
                    found[k] = self._again(connection, ask, state.budget, json.loads(result))
            elif ask.once.name in seen:
                found[k] = RulesOutdated()  # Its twin stands in this very group.
            else:
                seen.add(ask.once.name)
                open_asks.append(k)
        return self._joined(asks, open_asks, states)

    def _joined(
        self, asks: Sequence[Ask], which: Iterable[int], states: Mapping[str, State]
    ) -> list[Group]:
        groups: dict[tuple[str, int], Group] = {}
        for k in which:
            ask = asks[k]
            # Rules of one version say the same, also where they were read twice.
            name = (ask.rules.campaign_id, id(ask.scorer))
            group = groups.get(name)
            if group is None:
                state = states.get(ask.rules.campaign_id)
                budget = None if state is None else state.budget
                group = Group(ask.scorer, ask.rules, budget, self.now(ask.scorer))
                groups[name] = group
            group.asks.append(k)
        return list(groups.values())

    def _look(
        self,
        connection: Connection,
        group: Group,
        asks: Sequence[Ask],
        taken: dict[tuple[str, str], Group],
    ) -> None:
        """What the log knows of everyone in the group whom no other group has taken; while models
        are swapped, two scorers are asked about one campaign."""
        campaign = group.rules.campaign_id
        everyone = dict.fromkeys(i for k in group.asks for i in asks[k].ids)
        for customer in everyone:
            owner = taken.setdefault((campaign, customer), group)
            if owner is not group:
                group.twins[customer] = owner
        self.look(connection, group, [i for i in everyone if i not in group.twins])
        self._hear(group, asks)

    def _hear(self, group: Group, asks: Sequence[Ask]) -> None:
        """What the requests say of customers, where the campaign asks for it."""
        if group.rules.default is not None:
            said = {c.customer_id for k in group.asks for c in asks[k].customers if c.consent}
            facts = group.facts or Facts.none(len(group.fresh))
            group.facts = replace(facts, stated=[i in said for i in group.fresh])

    def look(self, connection: Connection, group: Group, customers: Iterable[str]) -> None:
        """What the log knows of these customers."""
        everyone = list(customers)
        rules, now = group.rules, micros(group.now)
        campaign, window = rules.campaign_id, group.window
        group.known = self.store.sticky(connection, campaign, window.campaign.window_id, everyone)
        group.fresh = [i for i in everyone if i not in group.known]
        longest = max((days for _, days in rules.caps), default=0)
        past = self.store.past(
            connection,
            campaign,
            group.scorer.salt.value,
            everyone,
            group.fresh,
            now=now,
            offered_since=now - longest * 86_400_000_000,
            bought_since=window.start,
        )
        group.gone = past.gone
        if rules.campaign.limited:
            left = stock.left(self.log, connection, rules.campaign.limited)
            arms = rules.campaign.arms
            group.in_stock = np.array([left.get(arm, 1) > 0 for arm in arms], dtype=bool)
        group.facts = Facts(
            [i in group.gone for i in group.fresh],
            [group.gone.get(i) == "erased" for i in group.fresh],
            [rules.capped_until(past.offers[i]) if i in past.offers else None for i in group.fresh],
            [i in past.converted for i in group.fresh],
        )

    def _evaluate(self, group: Group) -> None:
        if not group.fresh:
            return
        budget = group.rules.campaign.budget
        left = None if budget is None else round(budget * 1e6)
        if group.budget is not None:
            left = group.budget.left
        group.made = evaluate(
            group.scorer,
            group.rules,
            group.fresh,
            group.now,
            facts=group.facts,
            left=left,
            active=group.active,
            in_stock=group.in_stock,
        )

    def _yield(
        self,
        connection: Connection,
        rows: Sequence[tuple[Group, Mapping[str, Any]]],
        lost: set[str],
    ) -> None:
        """Read the decisions that other processes made first. Raises RulesOutdated where one has
        gone in the meantime: then nothing is kept, and the whole is tried again."""
        late: dict[int, tuple[Group, list[str]]] = {}
        for group, row in rows:
            if row["decision_id"] in lost:
                late.setdefault(id(group), (group, []))[1].append(row["customer_id"])
        for group, customers in late.values():
            window = group.window.campaign.window_id
            found = self.store.sticky(connection, group.rules.campaign_id, window, customers)
            if len(found) < len(customers):
                raise RulesOutdated
            group.known.update(found)

    def _render(self, group: Group, ask: Ask) -> tuple[bytes, str, dict[str, int]]:
        """The body, what to keep for a replay, and the reasons."""
        items, ids, hits = [], [], []
        reasons: dict[str, int] = {}
        unread = _unread(group.rules, ask.customers)
        closed = group.rules.closed(group.now, group.active)
        for index, customer in enumerate(ask.customers):
            owner = group.twins.get(customer.customer_id, group)
            stored = owner.known.get(customer.customer_id)
            if stored is not None:
                hits.append(index)
                ids.append(stored.decision_id)
                why = self._withheld(owner, stored, customer, closed)
                item = restored(stored, index, customer.customer_id, why, True)
            else:
                i = owner.place[customer.customer_id]
                assert owner.made is not None
                decision_id = None if ask.dry_run else owner.ids[i]
                ids.append(decision_id)
                item = owner.made.items[i]
                if (index, decision_id) != (item.index, item.decision_id):
                    item = msgspec.structs.replace(item, index=index, decision_id=decision_id)
            if index in unread:
                item = msgspec.structs.replace(item, warnings=[*item.warnings, "context_ignored"])
            reasons[item.reason] = reasons.get(item.reason, 0) + 1
            items.append(item)
        window = group.window.campaign.window_id
        found = envelope(
            group.scorer, group.rules, window, group.now, items, ask.request_id, ask.dry_run
        )
        kept = ""
        if ask.once is not None:
            kept = json.dumps(
                {
                    "request_id": ask.request_id,
                    "window_id": window,
                    "decided_at": found.decided_at,
                    "as_of": found.as_of,
                    "snapshot_id": found.snapshot_id,
                    "model_version": found.model_version,
                    "policy_version": found.policy_version,
                    "ids": ids,
                    "hits": hits,
                    "unread": sorted(unread),
                }
            )
        return _encode(found), kept, reasons

    def overruled(
        self, group: Group, stored: Stored, customer: str, closed: Reason | None
    ) -> Reason | None:
        """Why an offer that stands must not be made now, or what was decided for a customer who was
        erased since must not be told, if so."""
        gone = group.gone.get(customer)
        if gone == "erased":
            return Reason.UNKNOWN_CUSTOMER
        if stored.action != "offer":
            return None
        if closed is not None:
            return closed
        if gone is not None:
            return Reason.NO_CONSENT
        at, scorer = micros(group.rules.stands_at or group.now), group.scorer
        if stored.arm not in scorer.snapshot.arms:
            return Reason.COUPON_EXPIRED
        k, campaign = scorer.snapshot.arms.index(stored.arm), group.rules.campaign
        # A coupon that may be used once is used up.
        if stored.reservation == "realised" and scorer.orders_per_piece(stored.arm) == 1:
            return Reason.ALREADY_CONVERTED
        past = stored.valid_until is not None and stored.valid_until <= at
        if past or not campaign.offered[k]:
            return Reason.COUPON_EXPIRED
        # Who was handed a piece keeps it when the last one is gone, unless there is to be none.
        return Reason.COUPON_OUT_OF_STOCK if campaign.stock[k] == 0 else None

    def _withheld(
        self, group: Group, stored: Stored, customer: schemas.CustomerRequest, closed: Reason | None
    ) -> Reason | None:
        """As `overruled`, and by what the request says of the customer."""
        why = self.overruled(group, stored, customer.customer_id, closed)
        if why is None and stored.reason == Reason.DEFAULT_OFFER and customer.consent is False:
            return Reason.NO_CONSENT
        return why

    def _again(
        self, connection: Connection, ask: Ask, budget: Budget, result: Mapping[str, Any]
    ) -> Answer:
        """The earlier answer, byte for byte, but for offers that must not be made any more."""
        group = Group(ask.scorer, ask.rules, budget, self.now(ask.scorer))
        group.gone = self.store.gone(connection, ask.scorer.salt.value, ask.ids)
        rows = self.store.by_id(connection, result["ids"])
        closed = ask.rules.closed(group.now, group.active)
        hits, unread = set(result["hits"]), set(result.get("unread", ()))
        items = []
        for index, (customer, decision_id) in enumerate(
            zip(ask.customers, result["ids"], strict=True)
        ):
            row = rows[decision_id]
            why = self._withheld(group, row, customer, closed)
            item = restored(row, index, customer.customer_id, why, index in hits)
            if index in unread:
                item = msgspec.structs.replace(item, warnings=[*item.warnings, "context_ignored"])
            items.append(item)
        offers = sum(item.action == "offer" for item in items)
        found = schemas.DecisionsAnswer(
            request_id=result["request_id"],
            campaign_id=ask.rules.campaign_id,
            window_id=result["window_id"],
            dry_run=False,
            decided_at=result["decided_at"],
            as_of=result["as_of"],
            snapshot_id=result["snapshot_id"],
            model_version=result["model_version"],
            policy_version=result["policy_version"],
            counts=schemas.Counts(offer=offers, none=len(items) - offers),
            decisions=items,
        )
        return Answer(_encode(found), True, {})


def restored(
    row: Stored, index: int, customer: str, why: Reason | None, hit: bool
) -> schemas.Decision:
    """A stored decision as it was answered; with `why` its offer is withheld."""
    offer = row.action == "offer"
    item = schemas.Decision(
        index=index,
        customer_id=customer,
        decision_id=row.decision_id,
        action=row.action,
        arm=row.arm,
        coupon_id=row.arm if offer else None,
        reason=Reason(row.reason),
        is_holdout=row.holdout_kind != "none",
        is_exploration=row.is_exploration,
        assignment_prob=round(row.assignment_prob, 6),
        response_propensity=row.response_propensity,
        uplift=row.uplift,
        expected_incremental_profit_micros=row.expected_profit_micros,
        expected_cost_micros=row.expected_cost_micros,
        profile_state=row.profile_state,
        sticky_hit=hit,
        valid_until=shown_time(row.valid_until),
        retry_at=shown_time(row.retry_at),
        warnings=row.warnings.split(",") if row.warnings else [],
    )
    if why is None:
        return item
    if why == Reason.UNKNOWN_CUSTOMER:  # erased: what was known is not told any more
        item = msgspec.structs.replace(item, response_propensity=None, uplift=None)
    return refused(item, why)


def _unread(rules: Rules, customers: Sequence[schemas.CustomerRequest]) -> set[int]:
    """Places of the customers whose context says what the campaign does not ask for."""
    known = {"consent"} if rules.default is not None else set()
    return {i for i, c in enumerate(customers) if c.context and not c.context.keys() <= known}
