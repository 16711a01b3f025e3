"""What holds of customers before any draw: who may be offered anything, and which arms are left.

The same function serves previews, single requests and batches. Whoever is refused here takes no
part in the draws, so held-out and treated customers are one population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.arms import NOW, Openness
from serving.campaign import first_reason, usable
from serving.rules import DefaultOffer, Rules, Window
from serving.times import micros
from uplift.data import BoolArray, FloatArray
from uplift.policy import Reason

if TYPE_CHECKING:
    from serving.scorer import Scorer

MICROS = 1_000_000
NEVER = np.datetime64("NaT", "us")

Times = npt.NDArray[np.datetime64]
# Whom something holds of: (n,), or whether of everyone (or of the one customer asked about).
Holds = BoolArray | bool


@dataclass(frozen=True)
class Facts:
    """What the log knows of n customers beside the snapshot.

    withheld: consent was withdrawn, or the customer erased; erased: the latter; free_at: when
    contact caps let the next offer through, microseconds; None: now; converted: has ordered or
    redeemed already; stated: the request says that the customer consents.
    """

    withheld: Sequence[bool]
    erased: Sequence[bool]
    free_at: Sequence[int | None]
    converted: Sequence[bool] | None = None
    stated: Sequence[bool] | None = None

    @classmethod
    def none(cls, n: int) -> Facts:
        """A log that knows nothing."""
        no = [False] * n
        return cls(no, no, [None] * n)

    def some(self, keep: Sequence[bool]) -> Facts:
        """Those of the customers who are kept."""

        def kept(values: Sequence[Any] | None) -> Any:
            return None if values is None else list(compress(values, keep))

        return Facts(
            kept(self.withheld),
            kept(self.erased),
            kept(self.free_at),
            kept(self.converted),
            kept(self.stated),
        )


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


@dataclass(frozen=True)
class Standing:
    """What holds of everyone who is asked about at one moment.

    at: the shop's time; wall: the log's; microseconds. ours: the campaign is the configuration's
    own. offered, in_stock: (K,) arms that the campaign has, and of which a piece is left. closed:
    why nobody is offered anything, if so.
    """

    window: Window
    at: int
    wall: int
    ours: bool
    offered: BoolArray
    in_stock: BoolArray
    quiet_until: datetime | None
    closed: Reason | None
    stale_features: bool
    stale_model: bool

    def refusals(
        self,
        unknown: Holds,
        unusable: Holds,
        withheld: Holds,
        unfit: Holds,
        converted: Holds,
        capped: Holds,
    ) -> list[tuple[Reason, Holds]]:
        """What precedes the question which arms are left, in the order of the table of reasons: the
        first that holds counts."""
        closed: list[tuple[Reason, Holds]] = [] if self.closed is None else [(self.closed, True)]
        return [
            *closed,
            (Reason.UNKNOWN_CUSTOMER, unknown),
            (Reason.STALE_FEATURES, self.stale_features),
            (Reason.STALE_MODEL, self.stale_model),
            (Reason.SCORING_UNAVAILABLE, unusable),
            (Reason.NO_CONSENT, withheld),
            (Reason.NOT_ELIGIBLE, unfit),
            (Reason.ALREADY_CONVERTED, converted),
            (Reason.CONTACT_CAP, capped),
            (Reason.QUIET_HOURS, self.quiet_until is not None),
        ]


def no_arm(in_date: Holds, available: Holds, affordable: Holds) -> list[tuple[Reason, Holds]]:
    """The reasons after those, each of whom none of such arms is left."""
    return [
        (Reason.COUPON_EXPIRED, in_date),
        (Reason.COUPON_OUT_OF_STOCK, available),
        (Reason.BUDGET_EXHAUSTED, affordable),
    ]


def stands(
    scorer: Scorer, rules: Rules, now: datetime, active: bool, in_stock: BoolArray | None
) -> Standing:
    """What holds of everyone; arguments as of `evaluate`."""
    window = rules.window(now)
    campaign = window.campaign
    # With a fixed as_of the shop's time stands; the log's times are those of the wall.
    moment, wall = rules.stands_at or now, micros(now)
    at = wall if moment is now else micros(moment)
    valid = [end is None or end > at for end in window.ends[1:]]
    offered = campaign.offered_at(moment)
    if not all(valid):
        offered = offered & np.array(valid, dtype=bool)
    return Standing(
        window,
        at,
        wall,
        campaign.campaign_id == scorer.config.name,
        offered,
        campaign.in_stock if in_stock is None else in_stock,
        rules.quiet.until(now) if rules.quiet is not None else None,
        rules.closed(now, active),
        rules.older(now, scorer.snapshot.population.as_of, rules.max_feature_age),
        rules.older(now, scorer.model.registered_at, rules.max_model_age),
    )


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
    """What precedes every draw, of customer ids in their order; arguments as of `evaluate`."""
    people = scorer.snapshot.population
    facts = facts or Facts.none(len(ids))
    standing = stands(scorer, rules, now, active, in_stock)
    at, wall = np.datetime64(standing.at, "us"), np.datetime64(standing.wall, "us")
    erased = np.array(facts.erased, dtype=bool)
    rows, known = people.find(ids)
    known = known & ~erased
    reward = people.scores.reward[rows].astype(np.float64)
    cost = people.scores.cost[rows].astype(np.float64)
    response = people.scores.response[rows].astype(np.float64)
    left_open = people.open_at(at, rows, entering=standing.ours)
    fits = (
        left_open.eligible
        if rules.eligible is None
        else (left_open.eligible & rules.eligible[rows])
    )
    new: BoolArray | None = None
    there = known
    if rules.default is not None and facts.stated is not None:
        new = ~known & ~erased & np.array(facts.stated, dtype=bool)
        there = known | new
        # The rows of the score table that stand for unknown customers mean nothing.
        reward[new], response[new], cost[new] = 0.0, 0.0, 0.0
        cost[new, rules.default.arm] = rules.default.cost
        left_open = _open_to_default(left_open, rules.default, new)
        fits = np.where(new, rules.default.eligible, fits)
    # From numbers: numpy takes ten times as long for Nones.
    log_micros = np.array([NOW if free is None else free for free in facts.free_at], np.int64)
    shop_free, log_free = left_open.free_at, log_micros.view("datetime64[us]")
    capped = (shop_free > at) | (log_free > wall)
    reserve = _reserve(rules, cost)
    in_date = left_open.arms & standing.offered
    available = in_date & standing.in_stock
    eligible = left_open.arms
    affordable = available
    if left is not None:
        # An arm that the rest of the budget can't bear is out before any draw.
        payable = reserve <= left
        eligible, affordable = eligible & payable, available & payable
    refusals = standing.refusals(
        ~there,
        ~usable(reward, cost, response),
        ~left_open.consent | np.array(facts.withheld, dtype=bool),
        ~fits,
        False if facts.converted is None else np.array(facts.converted, dtype=bool),
        capped,
    )
    if not affordable.any(axis=1).all():
        refusals += no_arm(_none(in_date), _none(available), _none(affordable))
    reason = first_reason(len(ids), refusals)
    return Judged(
        rows=rows,
        known=known,
        erased=erased,
        reward=reward,
        cost=cost,
        reserve=reserve,
        reason=reason,
        eligible=eligible,
        offered=standing.offered,
        in_stock=standing.in_stock,
        new=new,
        toll=None
        if people.toll is None or not standing.ours
        else people.toll[rows].astype(np.float64),
        shop_free=shop_free,
        log_free=log_free,
        capped=capped,
        quiet_until=standing.quiet_until,
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
