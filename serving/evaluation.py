"""Decisions for any customers of a campaign, from the score table, as columns and not one by one.

The same function serves previews, single requests and batches: what is asked together is decided
together. A customer's decision does not depend on who else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.config import CONTROL
from serving import schemas
from serving.campaign import Campaign
from serving.judging import MICROS as MICROS
from serving.judging import Facts as Facts
from serving.judging import Judged as Judged
from serving.judging import Times
from serving.judging import judge as judge
from serving.population import FOREVER
from serving.rules import Rules
from serving.times import micros as micros
from serving.times import moment as moment
from serving.times import shown_time as shown_time
from serving.times import timestamp as timestamp
from uplift.data import BoolArray, FloatArray
from uplift.policy import STICKY, Decisions, Reason, decide

if TYPE_CHECKING:
    from serving.scorer import Scorer

AGING = timedelta(hours=26)
MODEL_AGING = timedelta(days=45)
# From so many values on, Arrow writes decimals faster than numpy.
MANY = 64
_HOLDOUTS = {Reason.GLOBAL_HOLDOUT: "global", Reason.HOLDOUT: "campaign"}
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Evaluated:
    """n decisions that are not yet anybody's: `items` have no ids; `retry_at` is when to ask again,
    microseconds."""

    scorer: Scorer
    campaign: Campaign
    ends: Sequence[int | None]
    now: datetime
    items: list[schemas.Decision]
    found: Judged
    made: Decisions
    retry_at: list[int | None]

    @property
    def window(self) -> int:
        return self.campaign.window_id

    @cached_property
    def reserve(self) -> list[int]:
        """What the budget must bear for each, millionths."""
        if not self.found.reserve.shape[1]:
            return [0] * len(self.items)
        rows, column = np.arange(len(self.items)), self.made.arm - 1
        held: list[int] = np.where(self.made.is_offer, self.found.reserve[rows, column], 0).tolist()
        return held

    def rows(self, decision_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The decisions as rows of the log, under these ids."""
        items, made = self.items, self.made
        snapshot, valid = self.scorer.snapshot, self.ends
        names = [CONTROL, *snapshot.arms]
        offers = [item.action == "offer" for item in items]
        sticky = [item.reason in STICKY for item in items]
        arms = made.arm.tolist()
        drawn = [
            stands or (item.reason == Reason.BUDGET_EXHAUSTED and arm > 0)
            for stands, item, arm in zip(sticky, items, arms, strict=True)
        ]
        probs = list(map(tuple, made.probs.tolist()))
        # Many customers have the same: those of one choice among the same arms.
        told = {each: _told(names, each) for each in set(probs)}
        same = {
            "campaign_id": self.campaign.campaign_id,
            "window_id": self.window,
            "holdout_share": made.shares.h,
            "exploration_share": made.shares.exploration,
            "realised_micros": 0,
            "decided_at": micros(self.now),
            "sent_at": None,
            "as_of": micros(snapshot.as_of),
            "snapshot_id": snapshot.snapshot_id,
            "model_version": self.scorer.model.version,
            "policy_version": self.campaign.version,
        }
        each = {
            "decision_id": decision_ids,
            # The id of an erased customer is not written down again.
            "customer_id": [
                "erased" if erased else item.customer_id
                for erased, item in zip(self.found.erased.tolist(), items, strict=True)
            ],
            "sticky": sticky,
            "action": [item.action for item in items],
            "arm": [item.arm for item in items],
            "reason": [item.reason for item in items],
            "holdout_kind": [_HOLDOUTS.get(item.reason, "none") for item in items],
            "is_exploration": [item.is_exploration for item in items],
            "assignment_prob": made.assignment_prob.tolist(),
            "probs": [told[p] if some else None for p, some in zip(probs, drawn, strict=True)],
            "response_propensity": [item.response_propensity for item in items],
            "uplift": [item.uplift for item in items],
            "expected_profit_micros": [item.expected_incremental_profit_micros for item in items],
            "expected_cost_micros": [item.expected_cost_micros for item in items],
            "reserved_micros": self.reserve,
            "reservation": ["held" if offer else "none" for offer in offers],
            "profile_state": [item.profile_state for item in items],
            "warnings": [",".join(item.warnings) for item in items],
            "valid_until": [
                valid[arm] if offer else None for offer, arm in zip(offers, arms, strict=True)
            ],
            "retry_at": self.retry_at,
        }
        columns = tuple(each)
        return [
            same | dict(zip(columns, row, strict=True)) for row in zip(*each.values(), strict=True)
        ]


def _told(names: Sequence[str], probs: Iterable[float]) -> str:
    """The arms that may be drawn and their probabilities, as JSON."""
    return _encode({name: p for name, p in zip(names, probs, strict=True) if p > 0}).decode()


def evaluate(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    *,
    facts: Facts | None = None,
    left: int | None = None,
    active: bool = True,
    in_stock: BoolArray | None = None,
) -> Evaluated:
    """Decide for customer ids, in their order; `left` millionths of the budget (None: no limit)
    may still be promised. in_stock: (K,) arms of which a piece is left; None: as the configuration
    says."""
    found = judge(scorer, rules, ids, now, facts=facts, left=left, active=active, in_stock=in_stock)
    campaign = rules.window(now).campaign
    made = decide(
        ids,
        _worth(rules, found),
        found.cost,
        shares=campaign.shares,
        salt=scorer.salt.value,
        campaign_id=campaign.campaign_id,
        window_id=campaign.window_id,
        shadow_price=rules.shadow_price,
        min_profit=campaign.min_profit,
        eligible=found.eligible,
        offered=found.offered,
        in_stock=found.in_stock,
        exploration_only=campaign.exploration_only,
        toll=found.toll,
        pre_reasons=found.reason,
    )
    return settle(scorer, rules, ids, now, found, made)


def settle(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    found: Judged,
    made: Decisions,
) -> Evaluated:
    """Decisions in the words of answers and of the log; money of `made` in currency."""
    if found.new is not None:
        default = found.new & (made.reason == Reason.BEST_NET_VALUE)
        reason = made.reason.copy()
        reason[default] = Reason.DEFAULT_OFFER
        made = replace(
            made,
            reason=reason,
            expected_incremental_profit=np.where(found.new, 0.0, made.expected_incremental_profit),
        )
    window = rules.window(now)
    retry = _retry(made, found.shop_free, found.log_free, found.capped, found.quiet_until)
    warnings = _warnings(scorer, rules, now)
    items = _items(scorer, ids, found.rows, found.known, made, window.shown, retry, warnings)
    return Evaluated(scorer, window.campaign, window.ends, now, items, found, made, retry)


def _worth(rules: Rules, found: Judged) -> FloatArray:
    """(n, K) the profit to decide by. The default offer is made at any price: nobody knows what
    it brings."""
    worth = rules.campaign.worth(found.reward)
    if rules.default is not None and found.new is not None:
        k, new = rules.default.arm, found.new
        price = rules.shadow_price * found.cost[new, k]
        worth[new, k] = 1.0 + max(rules.campaign.min_profit, 0.0) + price
    return worth


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
    if not capped.any():
        return found
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
    until: Sequence[str | None],
    retry: Sequence[int | None],
    warnings: list[str],
) -> list[schemas.Decision]:
    people, names, n = scorer.snapshot.population, [CONTROL, *scorer.snapshot.arms], len(ids)
    scores = people.scores.response[rows]
    if scorer.snapshot.arms:
        reward = np.where(scorer.told, people.scores.reward[rows], -np.inf)
        shown = np.where(made.is_offer, made.arm - 1, reward.argmax(axis=1))
        scores = np.concatenate([scores, people.scores.cate[rows, shown]])
    told = shortest(scores)
    response, uplift = told[:n], told[n:] or [None] * n
    offers, codes, there = made.is_offer.tolist(), made.arm.tolist(), known.tolist()
    chances = made.assignment_prob.tolist()
    # There are as many probabilities as ways to be assigned, far fewer than customers.
    rounded = {chance: round(chance, 6) for chance in set(chances)}
    money = np.rint(np.array([made.expected_incremental_profit, made.expected_cost]) * MICROS)
    profit, cost = money.astype(np.int64).tolist()
    columns: dict[str, Iterable[Any]] = {
        "index": range(n),
        "customer_id": ids,
        "decision_id": repeat(None),
        "action": ["offer" if offer else "none" for offer in offers],
        "arm": [names[arm] for arm in codes],
        "coupon_id": [
            names[arm] if offer else None for offer, arm in zip(offers, codes, strict=True)
        ],
        "reason": made.reason.tolist(),
        "is_holdout": made.is_holdout.tolist(),
        "is_exploration": made.is_exploration.tolist(),
        "assignment_prob": [rounded[chance] for chance in chances],
        "response_propensity": [
            value if seen else None for value, seen in zip(response, there, strict=True)
        ],
        "uplift": [value if seen else None for value, seen in zip(uplift, there, strict=True)],
        "expected_incremental_profit_micros": profit,
        "expected_cost_micros": cost,
        "profile_state": profile_states(scorer, rows, known),
        "sticky_hit": repeat(False),
        "valid_until": [
            until[arm] if offer else None for offer, arm in zip(offers, codes, strict=True)
        ],
        "retry_at": [shown_time(at) for at in retry],
        "warnings": repeat(warnings),
    }
    # A thousand objects made from columns take a quarter of the time of as many calls by name.
    return list(map(schemas.Decision, *(columns[f] for f in schemas.Decision.__struct_fields__)))


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
    prospects = scorer.snapshot.population.tier.has("prospect", rows).tolist()
    return [
        "unknown" if not there else "no_history" if prospect else "known"
        for there, prospect in zip(known.tolist(), prospects, strict=True)
    ]


def _warnings(scorer: Scorer, rules: Rules, now: datetime) -> list[str]:
    found = []
    if rules.stands_at is None and now - scorer.snapshot.as_of > AGING:
        found.append("features_aging")
    if rules.older(now, scorer.model.registered_at, MODEL_AGING):
        found.append("model_aging")
    if scorer.simulated:
        found.append("simulated_data")
    return found


def shortest(values: npt.NDArray[np.float32]) -> list[float | None]:
    """Each float32 as the double of its shortest decimals, which float32 reads back bit for bit;
    None for what is not finite."""
    finite = np.isfinite(values)
    if len(values) >= MANY:
        decimals = pa.array(values, mask=~finite).cast(pa.string()).cast(pa.float64())
        found: list[float | None] = decimals.to_pylist()
        return found
    return [
        float(text) if fine else None
        for text, fine in zip(values.astype("U16").tolist(), finite.tolist(), strict=True)
    ]
