"""What holds of customers before any draw: who may be offered anything, and which arms are left.

The same function serves previews, single requests and batches. Whoever is refused here takes no
part in the draws, so held-out and treated customers are one population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serving.arms import Openness
from serving.campaign import first_reason, usable
from serving.rules import DefaultOffer, Rules
from serving.times import micros
from uplift.data import BoolArray, FloatArray
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.scorer import Scorer

MICROS = 1_000_000
NEVER = np.datetime64("NaT", "us")

Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class Facts:
    """What the log knows of n customers beside the snapshot.

    withheld: (n,) consent was withdrawn, or the customer erased; erased: (n,) the latter;
    free_at: (n,) when contact caps let the next offer through; NaT: now; converted: (n,) has
    ordered or redeemed already; stated: (n,) the request says that the customer consents.
    """

    withheld: BoolArray
    erased: BoolArray
    free_at: Times
    converted: BoolArray | None = None
    stated: BoolArray | None = None

    @classmethod
    def none(cls, n: int) -> Facts:
        """A log that knows nothing."""
        no = np.zeros(n, dtype=bool)
        return cls(no, no, np.full(n, NEVER))


@dataclass(frozen=True)
class Judged:
    """What holds of n customers before any draw.

    rows, known: where each stands in the population, and whether it does. reward, cost: (n, K)
    currency; reserve: (n, K) millionths that an offer holds of the budget. reason: (n,) the first
    reason that precedes randomisation, or None. eligible: (n, K) arms that rules and budget leave;
    offered, in_stock: (K,) arms that the campaign has, and of which a piece is left. new: (n,)
    unknown customers to whom the campaign's default goes; None where it has none. toll: (n, K) what
    limits take off the worth. shop_free, log_free, capped, quiet_until: until when contacts are
    held back.
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
    in_stock: BoolArray
    new: BoolArray | None
    toll: FloatArray | None
    shop_free: Times
    log_free: Times
    capped: BoolArray
    quiet_until: datetime | None


def judge(
    scorer: Scorer,
    rules: Rules,
    ids: Sequence[str],
    now: datetime,
    *,
    facts: Facts | None = None,
    left: int | None = None,
    active: bool = True,
    in_stock: BoolArray | None = None,
) -> Judged:
    """What precedes every draw, of customer ids in their order; arguments as of `evaluate`.

    The reasons stand here in the order of their table: the first one holds.
    """
    people, model = scorer.snapshot.population, scorer.model
    facts = facts or Facts.none(len(ids))
    rows, known = people.find(ids)
    known = known & ~facts.erased
    window = rules.window(now)
    campaign = window.campaign
    reward = people.scores.reward[rows].astype(np.float64)
    cost = people.scores.cost[rows].astype(np.float64)
    response = people.scores.response[rows].astype(np.float64)
    # With a fixed as_of the shop's time stands; the log's times are those of the wall.
    moment = rules.stands_at or now
    moment_micros = micros(moment)
    at, wall = np.datetime64(moment_micros, "us"), np.datetime64(micros(now), "us")
    ours = campaign.campaign_id == scorer.config.name
    left_open = people.open_at(at, rows, entering=ours)
    fits = (
        left_open.eligible
        if rules.eligible is None
        else (left_open.eligible & rules.eligible[rows])
    )
    new: BoolArray | None = None
    there = known
    if rules.default is not None and facts.stated is not None:
        new = ~known & ~facts.erased & facts.stated
        there = known | new
        # The rows of the score table that stand for unknown customers mean nothing.
        reward[new], response[new], cost[new] = 0.0, 0.0, 0.0
        cost[new, rules.default.arm] = rules.default.cost
        left_open = _open_to_default(left_open, rules.default, new)
        fits = np.where(new, rules.default.eligible, fits)
    shop_free, log_free = left_open.free_at, facts.free_at
    capped = (shop_free > at) | (log_free > wall)
    valid = [end is None or end > moment_micros for end in window.ends[1:]]
    offered = campaign.offered_at(moment)
    if not all(valid):
        offered = offered & np.array(valid, dtype=bool)
    quiet_until = rules.quiet.until(now) if rules.quiet is not None else None

    in_stock = campaign.in_stock if in_stock is None else in_stock
    reserve = _reserve(rules, cost)
    in_date = left_open.arms & offered
    available = in_date & in_stock
    eligible = left_open.arms
    affordable = available
    if left is not None:
        # An arm that the rest of the budget can't bear is out before any draw.
        payable = reserve <= left
        eligible, affordable = eligible & payable, available & payable
    closed = rules.closed(now, active)
    refusals: list[tuple[Reason, BoolArray | bool]] = [
        *([] if closed is None else [(closed, True)]),
        (Reason.UNKNOWN_CUSTOMER, ~there),
        (Reason.STALE_FEATURES, rules.older(now, people.as_of, rules.max_feature_age)),
        (Reason.STALE_MODEL, rules.older(now, model.registered_at, rules.max_model_age)),
        (Reason.SCORING_UNAVAILABLE, ~usable(reward, cost, response)),
        (Reason.NO_CONSENT, ~left_open.consent | facts.withheld),
        (Reason.NOT_ELIGIBLE, ~fits),
        (Reason.ALREADY_CONVERTED, False if facts.converted is None else facts.converted),
        (Reason.CONTACT_CAP, capped),
        (Reason.QUIET_HOURS, quiet_until is not None),
    ]
    if not affordable.any(axis=1).all():
        refusals += [
            (Reason.COUPON_EXPIRED, _none(in_date)),
            (Reason.COUPON_OUT_OF_STOCK, _none(available)),
            (Reason.BUDGET_EXHAUSTED, _none(affordable)),
        ]
    reason = first_reason(len(ids), refusals)
    return Judged(
        rows=rows,
        known=known,
        erased=facts.erased,
        reward=reward,
        cost=cost,
        reserve=reserve,
        reason=reason,
        eligible=eligible,
        offered=offered,
        in_stock=in_stock,
        new=new,
        toll=None if people.toll is None or not ours else people.toll[rows].astype(np.float64),
        shop_free=shop_free,
        log_free=log_free,
        capped=capped,
        quiet_until=quiet_until,
    )


def _open_to_default(left: Openness, default: DefaultOffer, new: BoolArray) -> Openness:
    """The same, but for unknown customers their one arm: tables say nothing of them."""
    theirs = np.arange(left.arms.shape[1]) == default.arm
    return Openness(
        left.consent | new,
        left.eligible | new,
        np.where(new, NEVER, left.free_at),
        np.where(new[:, None], theirs, left.arms),
    )


def _none(arms: BoolArray) -> BoolArray:
    """(n,) customers who have none of these (n, K) arms."""
    return np.logical_not(arms.any(axis=1))


def _reserve(rules: Rules, cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(n, K) millionths that an offer of each arm holds of the budget."""
    if rules.worst_micros is not None:
        worst = np.array(rules.worst_micros, dtype=np.int64)
        return np.broadcast_to(worst, cost.shape)
    micro: FloatArray = np.rint(np.fmax(cost, 0.0) * MICROS)  # 0 for a cost that is missing
    if rules.safety_factor != 1.0:
        micro = np.ceil(micro * rules.safety_factor)
    return micro.astype(np.int64)
