"""What holds of customers before any draw: who may be offered anything, and which arms are left.

The same function serves previews, single requests and batches. Whoever is refused here takes no
part in the draws, so held-out and treated customers are one population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serving.arms import Openness
from serving.campaign import first_reason, usable
from serving.rules import DefaultOffer, Rules
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
    unknown customers to whom the campaign's default goes. toll: (n, K) what limits take off the
    worth. shop_free, log_free, capped, quiet_until: until when contacts are held back.
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
    new: BoolArray
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
    campaign = rules.in_window(rules.window_at(now))
    reward = people.scores.reward[rows].astype(np.float64)
    cost = people.scores.cost[rows].astype(np.float64)
    response = people.scores.response[rows].astype(np.float64)
    moment = rules.stands_at or now
    at = np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
    wall = np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "us")
    # With a fixed as_of the shop's time stands; the log's times are those of the wall.
    ours = campaign.campaign_id == scorer.config.name
    left_open = people.open_at(at, rows, entering=ours)
    fits = (
        left_open.eligible
        if rules.eligible is None
        else (left_open.eligible & rules.eligible[rows])
    )
    new = np.zeros(len(ids), dtype=bool)
    if rules.default is not None and facts.stated is not None:
        new = ~known & ~facts.erased & facts.stated
        # The rows of the score table that stand for unknown customers mean nothing.
        reward[new], response[new], cost[new] = 0.0, 0.0, 0.0
        cost[new, rules.default.arm] = rules.default.cost
        left_open = _open_to_default(left_open, rules.default, new)
        fits = np.where(new, rules.default.eligible, fits)
    shop_free, log_free = left_open.free_at, facts.free_at
    capped = (shop_free > at) | (log_free > wall)
    ends = rules.valid_until(campaign.window_id)
    valid = [end is None or end > moment for end in ends[1:]]
    offered = campaign.offered_at(moment) & np.array(valid, dtype=bool)
    quiet_until = rules.quiet.until(now) if rules.quiet is not None else None

    in_stock = campaign.in_stock if in_stock is None else in_stock
    reserve = _reserve(rules, cost)
    # An arm that the rest of the budget can't bear is out before any draw.
    payable = np.ones(cost.shape, dtype=bool) if left is None else reserve <= left
    closed = rules.closed(now, active)
    in_date = left_open.arms & offered
    reason = first_reason(
        len(ids),
        [
            *([] if closed is None else [(closed, True)]),
            (Reason.UNKNOWN_CUSTOMER, ~known & ~new),
            (Reason.STALE_FEATURES, rules.older(now, people.as_of, rules.max_feature_age)),
            (Reason.STALE_MODEL, rules.older(now, model.registered_at, rules.max_model_age)),
            (Reason.SCORING_UNAVAILABLE, ~usable(reward, cost, response)),
            (Reason.NO_CONSENT, ~left_open.consent | facts.withheld),
            (Reason.NOT_ELIGIBLE, ~fits),
            (Reason.ALREADY_CONVERTED, False if facts.converted is None else facts.converted),
            (Reason.CONTACT_CAP, capped),
            (Reason.QUIET_HOURS, quiet_until is not None),
            (Reason.COUPON_EXPIRED, ~in_date.any(axis=1)),
            (Reason.COUPON_OUT_OF_STOCK, ~(in_date & in_stock).any(axis=1)),
            (Reason.BUDGET_EXHAUSTED, ~(in_date & in_stock & payable).any(axis=1)),
        ],
    )
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


def _reserve(rules: Rules, cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(n, K) millionths that an offer of each arm holds of the budget."""
    if rules.worst_micros is not None:
        worst = np.array(rules.worst_micros, dtype=np.int64)
        return np.broadcast_to(worst, cost.shape)
    micro = np.rint(np.nan_to_num(cost) * MICROS)
    if rules.safety_factor != 1.0:
        micro = np.ceil(micro * rules.safety_factor)
    return micro.astype(np.int64)
