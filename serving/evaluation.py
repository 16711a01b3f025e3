"""Decisions for any customers of a campaign, from the score table, as columns and not one by one.

The same function serves previews, single requests and batches: what is asked together is decided
together. A customer's decision does not depend on who else is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from features.config import CONTROL
from serving import schemas
from serving.campaign import pre_reasons
from serving.population import FOREVER
from serving.rules import Rules
from uplift.data import BoolArray, FloatArray
from uplift.policy import STICKY, Decisions, Reason, decide

if TYPE_CHECKING:
    from serving.scorer import Scorer

AGING = timedelta(hours=26)
MICROS = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRECEDED_BY_ELIGIBILITY = (None, Reason.CONTACT_CAP, Reason.QUIET_HOURS)
_HOLDOUTS = {Reason.GLOBAL_HOLDOUT: "global", Reason.HOLDOUT: "campaign"}
_encode = msgspec.json.Encoder().encode

Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class Facts:
    """What the log knows of n customers beside the snapshot.

    withheld: (n,) consent was withdrawn, or the customer erased; erased: (n,) the latter;
    free_at: (n,) when contact caps let the next offer through; NaT: now.
    """

    withheld: BoolArray
    erased: BoolArray
    free_at: Times

    @classmethod
    def none(cls, n: int) -> Facts:
        """A log that knows nothing."""
        no = np.zeros(n, dtype=bool)
        return cls(no, no, np.full(n, np.datetime64("NaT", "us")))


@dataclass(frozen=True)
class Evaluated:
    """n decisions that are not yet anybody's: `items` have no ids, `reserve` is what the budget
    must bear for each, millionths."""

    rules: Rules
    window: int
    now: datetime
    items: list[schemas.Decision]
    made: Decisions
    reserve: list[int]
    erased: list[bool]
    columns: Mapping[str, Any]

    def row(self, i: int, decision_id: str) -> dict[str, Any]:
        """Decision i as a row of the log."""
        item, made = self.items[i], self.made
        reason = Reason(item.reason)
        names = self.columns["names"]
        probs = made.probs[i].tolist()
        drawn = reason in STICKY or (reason == Reason.BUDGET_EXHAUSTED and made.arm[i] > 0)
        kept = {name: p for name, p in zip(names, probs, strict=True) if p > 0} if drawn else None
        offer = item.action == "offer"
        return {
            "decision_id": decision_id,
            "campaign_id": self.rules.campaign_id,
            # The id of an erased customer is not written down again.
            "customer_id": "erased" if self.erased[i] else item.customer_id,
            "window_id": self.window,
            "sticky": reason in STICKY,
            "action": item.action,
            "arm": item.arm,
            "reason": item.reason,
            "holdout_kind": _HOLDOUTS.get(reason, "none"),
            "is_exploration": item.is_exploration,
            "assignment_prob": float(made.assignment_prob[i]),
            "probs": None if kept is None else _encode(kept).decode(),
            "holdout_share": made.shares.h,
            "exploration_share": made.shares.exploration,
            "response_propensity": item.response_propensity,
            "uplift": item.uplift,
            "expected_profit_micros": item.expected_incremental_profit_micros,
            "expected_cost_micros": item.expected_cost_micros,
            "reserved_micros": self.reserve[i],
            "realised_micros": 0,
            "reservation": "held" if offer else "none",
            "profile_state": item.profile_state,
            "warnings": ",".join(item.warnings),
            "valid_until": self.columns["valid_micros"][made.arm[i]] if offer else None,
            "retry_at": self.columns["retry_micros"][i],
            "decided_at": micros(self.now),
            "sent_at": None,
            **self.columns["same"],
        }


@dataclass(frozen=True)
class Judged:
    """What holds of n customers before any draw.

    rows, known: where each stands in the population, and whether it does. reward, cost: (n, K)
    currency; reserve: (n, K) millionths that an offer holds of the budget. reason: (n,) the first
    reason that precedes randomisation, or None. eligible: (n, K) arms that rules and budget leave;
    offered: (K,) arms that the campaign has. toll: (n, K) what limits take off the worth.
    shop_free, log_free, capped, quiet_until: until when contacts are held back.
    """

    rows: npt.NDArray[np.int64]
    known: BoolArray
    erased: BoolArray
    reward: FloatArray
    cost: FloatArray
    reserve: npt.NDArray[np.int64]
    reason: npt.NDArray[np.object_]
    eligible: BoolArray
    offered: BoolArray
    toll: FloatArray | None
    shop_free: Times
    log_free: Times
    capped: BoolArray
    quiet_until: datetime | None


def evaluate(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    *,
    facts: Facts | None = None,
    left: int | None = None,
    active: bool = True,
) -> Evaluated:
    """Decide for customer ids, in their order; `left` millionths of the budget (None: no limit)
    may still be promised."""
    found = judge(scorer, rules, ids, now, facts=facts, left=left, active=active)
    campaign = rules.in_window(rules.window_at(now))
    made = decide(
        ids,
        campaign.worth(found.reward),
        found.cost,
        shares=campaign.shares,
        salt=scorer.salt.value,
        campaign_id=campaign.campaign_id,
        window_id=campaign.window_id,
        shadow_price=rules.shadow_price,
        min_profit=campaign.min_profit,
        eligible=found.eligible,
        offered=found.offered,
        in_stock=campaign.in_stock,
        toll=found.toll,
        pre_reasons=found.reason,
    )
    return settle(scorer, rules, ids, now, found, made)


def judge(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    *,
    facts: Facts | None = None,
    left: int | None = None,
    active: bool = True,
) -> Judged:
    """What precedes every draw, of customer ids in their order; arguments as of `evaluate`."""
    people = scorer.snapshot.population
    facts = facts or Facts.none(len(ids))
    rows, known = people.find(ids)
    known = known & ~facts.erased
    campaign = rules.in_window(rules.window_at(now))
    reward = people.scores.reward[rows].astype(np.float64)
    cost = people.scores.cost[rows].astype(np.float64)
    moment = rules.stands_at or now
    at = np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
    wall = np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "us")
    # With a fixed as_of the shop's time stands; the log's times are those of the wall.
    ours = campaign.campaign_id == scorer.config.name
    left_open = people.open_at(at, rows, entering=ours)
    shop_free, log_free = left_open.free_at, facts.free_at
    capped = (shop_free > at) | (log_free > wall)
    ends = rules.valid_until(campaign.window_id)
    in_date = [end is None or end > moment for end in ends[1:]]
    offered = campaign.offered_at(moment) & np.array(in_date, dtype=bool)
    quiet_until = rules.quiet.until(now) if rules.quiet is not None else None

    reason = pre_reasons(
        reward,
        cost,
        people.scores.response[rows].astype(np.float64),
        left_open.consent & ~facts.withheld,
        capped,
        left_open.eligible,
    )
    if quiet_until is not None:
        reason[reason == None] = Reason.QUIET_HOURS  # noqa: E711
    if rules.eligible is not None:
        lower = np.array([r in _PRECEDED_BY_ELIGIBILITY for r in reason], dtype=bool)
        reason[lower & ~rules.eligible[rows]] = Reason.NOT_ELIGIBLE
    reserve = _reserve(rules, cost)
    payable = np.ones(cost.shape, dtype=bool)
    if left is not None and offered.any():
        # An arm that the rest of the budget can't bear is out before any draw.
        payable = reserve <= left
        broke = (~payable | ~offered).all(axis=1) & (reason == None)  # noqa: E711
        reason[broke] = Reason.BUDGET_EXHAUSTED
    if rules.stands_at is None:
        age = now - scorer.snapshot.as_of
        if rules.max_feature_age is not None and age > rules.max_feature_age:
            reason[:] = Reason.STALE_FEATURES
    reason[~known] = Reason.UNKNOWN_CUSTOMER
    closed = rules.closed(now, active)
    if closed is not None:
        reason[:] = closed
    return Judged(
        rows=rows,
        known=known,
        erased=facts.erased,
        reward=reward,
        cost=cost,
        reserve=reserve,
        reason=reason,
        eligible=payable & left_open.arms,
        offered=offered,
        toll=None if people.toll is None or not ours else people.toll[rows].astype(np.float64),
        shop_free=shop_free,
        log_free=log_free,
        capped=capped,
        quiet_until=quiet_until,
    )


def settle(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    found: Judged,
    made: Decisions,
) -> Evaluated:
    """Decisions in the words of answers and of the log; money of `made` in currency."""
    bundle = scorer.model.bundle
    campaign = rules.in_window(rules.window_at(now))
    ends = rules.valid_until(campaign.window_id)
    retry = _retry(made, found.shop_free, found.log_free, found.capped, found.quiet_until)
    columns = {
        "names": [CONTROL, *bundle.arms],
        "valid_micros": [None if end is None else micros(end) for end in ends],
        "retry_micros": retry,
        "same": {
            "as_of": micros(scorer.snapshot.as_of),
            "snapshot_id": scorer.snapshot.snapshot_id,
            "model_version": scorer.model.version,
            "policy_version": campaign.version,
        },
    }
    warnings = _warnings(scorer, rules, now)
    items = _items(scorer, ids, found.rows, found.known, made, ends, retry, warnings)
    held = (
        np.where(made.is_offer, found.reserve[np.arange(len(ids)), made.arm - 1], 0)
        if len(bundle.arms)
        else np.zeros(len(ids), dtype=np.int64)
    )
    return Evaluated(
        rules, campaign.window_id, now, items, made, held.tolist(), found.erased.tolist(), columns
    )


def _reserve(rules: Rules, cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(n, K) millionths that an offer of each arm holds of the budget."""
    if rules.worst_micros is not None:
        worst = np.array(rules.worst_micros, dtype=np.int64)
        return np.broadcast_to(worst, cost.shape)
    micro = np.rint(np.nan_to_num(cost) * MICROS)
    if rules.safety_factor != 1.0:
        micro = np.ceil(micro * rules.safety_factor)
    return micro.astype(np.int64)


def _retry(
    made: Decisions,
    shop_free: Times,
    log_free: Times,
    capped: BoolArray,
    quiet_until: datetime | None,
) -> list[int | None]:
    """(n,) when to ask again, microseconds; of contact caps and quiet hours alone."""
    found: list[int | None] = [None] * len(made.reason)
    if quiet_until is not None:
        at = micros(quiet_until)
        found = [at if reason == Reason.QUIET_HOURS else None for reason in made.reason]
    for i in np.flatnonzero(capped & (made.reason == Reason.CONTACT_CAP)).tolist():
        until = np.fmax(shop_free[i], log_free[i])
        found[i] = None if until >= FOREVER else int(until.astype(np.int64))
    return found


def _items(
    scorer: Scorer,
    ids: Sequence[str],
    rows: npt.NDArray[np.int64],
    known: BoolArray,
    made: Decisions,
    ends: Sequence[datetime | None],
    retry: Sequence[int | None],
    warnings: list[str],
) -> list[schemas.Decision]:
    people, arms = scorer.snapshot.population, scorer.model.bundle.arms
    names = [CONTROL, *arms]
    uplift: list[float | None] = [None] * len(ids)
    if arms:
        reward = np.where(scorer.campaign.offered, people.scores.reward[rows], -np.inf)
        shown = np.where(made.is_offer, made.arm - 1, reward.argmax(axis=1))
        uplift = shortest(people.scores.cate[rows, shown])
    response = shortest(people.scores.response[rows])
    until = [None if end is None else timestamp(end) for end in ends]
    profit = np.rint(made.expected_incremental_profit * MICROS).astype(np.int64).tolist()
    cost = np.rint(made.expected_cost * MICROS).astype(np.int64).tolist()
    probability = [round(p, 6) for p in made.assignment_prob.tolist()]
    profiles = profile_states(scorer, rows, known)
    columns = zip(
        ids,
        made.is_offer.tolist(),
        made.arm.tolist(),
        made.reason.tolist(),
        made.is_holdout.tolist(),
        made.is_exploration.tolist(),
        known.tolist(),
        strict=True,
    )
    return [
        schemas.Decision(
            index=i,
            customer_id=customer,
            decision_id=None,
            action="offer" if offer else "none",
            arm=names[arm],
            coupon_id=names[arm] if offer else None,
            reason=Reason(reason),
            is_holdout=held,
            is_exploration=drawn,
            assignment_prob=probability[i],
            response_propensity=response[i] if there else None,
            uplift=uplift[i] if there else None,
            expected_incremental_profit_micros=profit[i],
            expected_cost_micros=cost[i],
            profile_state=profiles[i],
            sticky_hit=False,
            valid_until=until[arm] if offer else None,
            retry_at=shown_time(retry[i]),
            warnings=warnings,
        )
        for i, (customer, offer, arm, reason, held, drawn, there) in enumerate(columns)
    ]


def envelope(
    scorer: Scorer,
    rules: Rules,
    window: int,
    now: datetime,
    items: list[schemas.Decision],
    request_id: str,
    dry_run: bool,
) -> schemas.DecisionsAnswer:
    """The answer around decisions."""
    offers = sum(item.action == "offer" for item in items)
    return schemas.DecisionsAnswer(
        request_id=request_id,
        campaign_id=rules.campaign_id,
        window_id=window,
        dry_run=dry_run,
        decided_at=timestamp(now.replace(microsecond=0)),
        as_of=timestamp(scorer.snapshot.as_of),
        snapshot_id=scorer.snapshot.snapshot_id,
        model_version=scorer.model.version,
        policy_version=rules.campaign.version,
        counts=schemas.Counts(offer=offers, none=len(items) - offers),
        decisions=items,
    )


def profile_states(
    scorer: Scorer, rows: npt.NDArray[np.int64], known: BoolArray
) -> list[schemas.Profile]:
    """known, no_history (no order yet) or unknown, per row."""
    none = scorer.snapshot.population.tier.texts(rows) == "prospect"
    state = np.where(known, np.where(none, "no_history", "known"), "unknown")
    profiles: list[schemas.Profile] = state.tolist()
    return profiles


def _warnings(scorer: Scorer, rules: Rules, now: datetime) -> list[str]:
    found = []
    if rules.stands_at is None and now - scorer.snapshot.as_of > AGING:
        found.append("features_aging")
    if scorer.simulated:
        found.append("simulated_data")
    return found


def micros(moment: datetime) -> int:
    """Microseconds of Unix time."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The UTC time of microseconds of Unix time."""
    return EPOCH + timedelta(microseconds=value)


def shown_time(value: int | None) -> str | None:
    return None if value is None else timestamp(moment(value))


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC; a time without a zone is UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat() + "Z"


def shortest(values: npt.NDArray[np.float32]) -> list[float | None]:
    """Each float32 as the double of its shortest decimals, which float32 reads back bit for bit;
    None for what is not finite."""
    finite = np.isfinite(values)
    return [
        float(text) if fine else None
        for text, fine in zip(values.astype("U16").tolist(), finite.tolist(), strict=True)
    ]
