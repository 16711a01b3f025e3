"""From scores to a logged decision: hold out, explore, else take the best offer.

Every draw is a keyed hash of the customer's id, so a decision needs no state, does not depend on
who else is in the batch, and can be repeated by anyone who has the salt. The probability of every
decision is logged with it; without it nothing can be learned from the platform's own decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.allocation import Allocation, Chunk, checked_scores, limit_of, of_arm
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.draws import BUCKETS as BUCKETS
from uplift.draws import bucket as bucket
from uplift.draws import digests as digests
from uplift.draws import draw, hashed, scaled, words
from uplift.draws import index as index
from uplift.errors import DesignError
from uplift.limits import Limit
from uplift.spending import (
    affordable_share,
    at_prices,
    beyond,
    left_of,
    spend_alone,
    spend_jointly,
    uses_of,
)

GLOBAL_SCOPE = "_global"

Texts = npt.NDArray[np.object_]


class Reason(StrEnum):
    """Why a customer gets what they get. Closed: clients may rely on the list."""

    CAMPAIGN_NOT_STARTED = "campaign_not_started"
    CAMPAIGN_ENDED = "campaign_ended"
    CAMPAIGN_PAUSED = "campaign_paused"
    UNKNOWN_CUSTOMER = "unknown_customer"
    STALE_FEATURES = "stale_features"
    STALE_MODEL = "stale_model"
    SCORING_UNAVAILABLE = "scoring_unavailable"
    NO_CONSENT = "no_consent"
    NOT_ELIGIBLE = "not_eligible"
    ALREADY_CONVERTED = "already_converted"
    CONTACT_CAP = "contact_cap"
    QUIET_HOURS = "quiet_hours"
    COUPON_EXPIRED = "coupon_expired"
    COUPON_OUT_OF_STOCK = "coupon_out_of_stock"
    BUDGET_EXHAUSTED = "budget_exhausted"
    GLOBAL_HOLDOUT = "global_holdout"
    HOLDOUT = "holdout"
    EXPLORATION = "exploration"
    BELOW_THRESHOLD = "below_threshold"
    BEST_NET_VALUE = "best_net_value"
    DEFAULT_OFFER = "default_offer"


# Settled before any draw, so held-out and treated customers are one population. First match wins.
BEFORE_RANDOMISATION = tuple(Reason)[: tuple(Reason).index(Reason.GLOBAL_HOLDOUT)]
# While decisions are made, a reason is its place here; 0 for none yet.
_REASONS = np.array(["", *Reason], dtype=object)
_CODE: dict[str | None, int] = {None: 0, **{str(r): i for i, r in enumerate(_REASONS)}}
_BEFORE = (None, "", *BEFORE_RANDOMISATION)
STICKY = frozenset(
    {
        Reason.GLOBAL_HOLDOUT,
        Reason.HOLDOUT,
        Reason.EXPLORATION,
        Reason.BELOW_THRESHOLD,
        Reason.BEST_NET_VALUE,
        Reason.DEFAULT_OFFER,
    }
)


@dataclass(frozen=True)
class Shares:
    """Shares of customers held out (of this campaign, of every campaign) and drawn at random.

    Taken to the nearest ten-thousandth, the width of a bucket. Raises DesignError outside [0, 1].
    """

    holdout: float = 0.0
    exploration: float = 0.0
    global_holdout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("holdout", "exploration", "global_holdout"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise DesignError(f"{name} share: expected a number in [0, 1], found {share!r}.")
            object.__setattr__(self, name, round(share * BUCKETS) / BUCKETS)

    @property
    def h(self) -> float:
        """Share held out one way or the other: 1 - (1 - global)(1 - campaign)."""
        return 1.0 - (1.0 - self.global_holdout) * (1.0 - self.holdout)


@dataclass(frozen=True)
class Certificate:
    """What a whole campaign was promised to cost, and how near to the optimum it is. Currency."""

    budget: float | None
    spend: float
    """Sum of the expected cost of all offers, exploration included; never above the budget."""
    exploration_spend: float
    value: float
    """Predicted incremental profit of the allocated offers (exploration left out); optimistic."""
    upper_bound: float
    """No allocation of what exploration leaves of the budget is predicted to bring more."""
    gap: float
    """upper_bound - value."""


class LimitUse(NamedTuple):
    """What all offers use of a limit, exploration included, and its price at the margin: profit per
    unit of it, 0 where it does not bind."""

    name: str
    most: float
    used: float
    price: float


@dataclass(frozen=True)
class Decisions:
    """One decision per customer, in the order of the ids. Columns (n,); money in currency."""

    customer_id: Texts
    arm: IntArray
    """Assigned arm, 0 = control. Where reason is budget_exhausted it was assigned, not sent."""
    is_offer: BoolArray
    reason: Texts
    """Values of Reason."""
    assignment_prob: FloatArray
    """Probability of the assigned arm, over holdout and exploration draws; 1 where a reason
    precedes randomisation."""
    probs: FloatArray
    """(n, K+1) probability of each arm given not held out; 0 where not eligible."""
    eligible: BoolArray
    """(n, K) arms that took part in the draw."""
    is_holdout: BoolArray
    is_exploration: BoolArray
    greedy: IntArray
    """What the customer would get if neither held out nor exploring."""
    expected_incremental_profit: FloatArray
    """Of the offered arm; 0 with none."""
    expected_cost: FloatArray
    shares: Shares
    """As used: the exploration share is lowered where the budget could not bear it."""
    shadow_price: float
    certificate: Certificate | None
    """None when a shadow price was given instead of a budget."""
    used: tuple[LimitUse, ...] = ()
    """Of each limit besides the budget, in their order; empty with a shadow price."""

    @property
    def action(self) -> Texts:
        """`offer` or `none`."""
        return np.where(self.is_offer, "offer", "none").astype(object)


def assignment_probs(
    choice: IntArray, eligible: BoolArray, shares: Shares, *, held_out: bool = True
) -> FloatArray:
    """(n, K+1) probability of each arm, control first; rows sum to 1.

    choice: (n,) greedy arm; eligible: (n, K). With A the number of eligible arms, control
    included, and eps the exploration share: (1 - h)(eps / A + (1 - eps) 1[arm = choice]), and h
    more for control. held_out=False: given not held out, that is h = 0.
    """
    n, arms = eligible.shape
    in_draw = np.concatenate([np.ones((n, 1), dtype=bool), eligible], axis=1)
    if np.any((choice < 0) | (choice > arms)) or not in_draw[np.arange(n), choice].all():
        raise DesignError("choice: expected an eligible arm or control for every customer.")
    return _probs(choice, eligible, in_draw.sum(axis=1), shares, shares.h if held_out else 0.0)


def _probs(
    choice: IntArray, eligible: BoolArray, ways: IntArray, shares: Shares, h: float
) -> FloatArray:
    """(n, K+1) as `assignment_probs`; ways: (n,) the number of eligible arms, control included."""
    drawn = (1.0 - h) * shares.exploration / ways
    probs = np.empty((len(choice), eligible.shape[1] + 1))
    probs[:, 0] = drawn
    np.multiply(eligible, drawn[:, None], out=probs[:, 1:])
    probs[np.arange(len(choice)), choice] += (1.0 - h) * (1.0 - shares.exploration)
    probs[:, 0] += h
    return probs


def _prob_of(
    arm: IntArray, choice: IntArray, ways: IntArray, shares: Shares, h: float
) -> FloatArray:
    """(n,) the entry of `_probs` of an arm that takes part in the draw."""
    drawn = (1.0 - h) * shares.exploration / ways
    chosen = (arm == choice) * ((1.0 - h) * (1.0 - shares.exploration))
    prob: FloatArray = drawn + chosen + (arm == 0) * h
    return prob


def decide(
    customer_ids: Sequence[str],
    reward: FloatArray,
    cost: FloatArray,
    *,
    shares: Shares,
    salt: bytes,
    campaign_id: str,
    window_id: int = 0,
    budget: float | None = None,
    shadow_price: float | None = None,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
    offered: BoolArray | None = None,
    in_stock: BoolArray | None = None,
    exploration_only: BoolArray | None = None,
    limits: Sequence[Limit] = (),
    toll: FloatArray | None = None,
    pre_reasons: Sequence[str | None] | npt.NDArray[Any] | None = None,
) -> Decisions:
    """Decide for all customers of a campaign under a budget, or for some at a shadow price.

    reward, cost: (n, K) expected incremental profit and expected cost, currency. eligible: (n, K)
    arms that the rules allow a customer. offered: (K,) arms that the campaign still has (active,
    in date); in_stock: (K,) likewise. exploration_only: (K,) arms that nobody knows the effect of,
    which only draws may give. limits: what is limited besides the budget, uses of shape (n, K) or
    (1, K), named. pre_reasons: (n,) a Reason that precedes randomisation, or None; such rows get
    control with probability 1 and their scores are not looked at (they may be NaN).

    Order of things: (1) reasons before randomisation; a row without any arm left gets
    `not_eligible` (its rules allow none), `coupon_expired` (the campaign has none of them left),
    `coupon_out_of_stock`, or `budget_exhausted` (each costs more than the whole budget, or uses
    more than the whole of a limit); (2) holdout, global before
    campaign; (3) exploration draws among the eligible arms in order of their code, control first;
    (4) the rest take the greedy arm, or none with `below_threshold`.

    With a budget (None: no limit) the explored draws are paid first and the allocation spends the
    rest, so the expected cost of all offers never passes it, nor their use of a limit the limit. If
    exploring at the wished share might pass one, the share is lowered beforehand, by costs and
    uses alone, so that the logged probabilities stay true; `Decisions.shares` has the share used.
    Held-out and exploring customers get as `greedy` what the same cut gives them; exactly equal
    steps are ordered by the hash. Under limits the cut is their prices, and the few customers whom
    the linear optimum splits get what still fits.

    With `shadow_price` nothing is solved: each customer is decided alone. `toll` (n, K) is what
    the prices of the limits take off each arm (`uplift.limits.tolls`). Given the prices and the
    shares of a campaign's decisions, a customer gets the same, but for the marginal customers (and
    steps that tie with them, which here are not taken) and arms dearer than the whole budget.

    Raises DesignError for shapes that do not fit, scores that are not finite, a reason that is
    none or follows randomisation, and for a budget together with a shadow price.
    """
    if budget is not None and shadow_price is not None:
        raise DesignError("decide: expected a budget or a shadow price, found both.")
    n = len(customer_ids)
    reward = np.asarray(reward, dtype=np.float64)
    cost = np.asarray(cost, dtype=np.float64)
    if reward.ndim != 2 or len(reward) != n or reward.shape != cost.shape:
        raise DesignError(
            f"reward and cost: expected shape ({n}, arms), found {reward.shape} and {cost.shape}."
        )
    code = _checked_reasons(pre_reasons, n)
    if code.any():
        # What a refused customer would have scored must not matter, and may be missing.
        reward = np.where((code == 0)[:, None], reward, 0.0)
        cost = np.where((code == 0)[:, None], cost, 0.0)
    reward, cost = checked_scores(reward, cost)
    limit = limit_of(budget)
    bounds = [(cost, limit), *((uses_of(each, cost.shape), float(each.most)) for each in limits)]
    # Every cost is within no limit at all.
    tight = bounds[1:] if math.isinf(limit) else bounds
    in_draw = _remove_arms(code, cost.shape, eligible, offered, in_stock, tight)

    scope = f"{campaign_id}/{window_id}"
    # Whom no share holds out needs no hash of his own.
    explore = hashed(salt, "explore", scope, customer_ids)
    held = [(shares.global_holdout, GLOBAL_SCOPE), (shares.holdout, campaign_id)]
    found = [
        hashed(salt, "holdout", where, customer_ids) if share else explore for share, where in held
    ]
    first = np.array([words(each)[:, 0] for each in (*found, explore)], dtype=np.uint64)
    everywhere, here, lowest = scaled(first, BUCKETS)
    everywhere = everywhere < _bps(shares.global_holdout)
    is_open = code == 0
    is_holdout = is_open & (everywhere | (here < _bps(shares.holdout)))
    randomised = is_open & ~is_holdout

    if tight:
        wished = np.arange(_bps(shares.exploration) + 1) / BUCKETS
        share = affordable_share(wished, randomised, in_draw, tight)
        shares = Shares(shares.holdout, share, shares.global_holdout)
    exploring = randomised & (lowest < _bps(shares.exploration))
    drawn = np.zeros(n, dtype=np.int64)
    rows = np.flatnonzero(exploring)
    if len(rows):
        drawn[rows] = draw(salt, scope, [customer_ids[i] for i in rows.tolist()], in_draw[rows])

    lost: BoolArray | None = None
    allocation: Allocation | None = None
    prices: Mapping[str, float] = {}
    choosable = in_draw if exploration_only is None else in_draw & ~np.asarray(exploration_only)
    if shadow_price is not None:
        greedy = at_prices(reward, cost, shadow_price, toll, min_profit, choosable)
    else:
        # Independent of the first word, which says who explores.
        order = words(explore)[:, 1].astype(np.uint64)
        lost = np.zeros(n, dtype=bool)
        for use, most in bounds:
            lost |= beyond(most, np.where(lost, 0.0, of_arm(use, drawn)), order)
        kept = np.where(lost, 0, drawn)
        left = [left_of(most, math.fsum(of_arm(use, kept).tolist())) for use, most in bounds]
        whole = Chunk(reward, cost, choosable, randomised & ~exploring, order)
        if limits:
            rest = [replace(each, most=most) for each, most in zip(limits, left[1:], strict=True)]
            allocation, prices = spend_jointly(whole, left[0], rest, min_profit)
        else:
            allocation = spend_alone(whole, left[0], min_profit)
        greedy, shadow_price = allocation.choice, allocation.shadow_price

    arm = np.where(exploring, drawn, np.where(randomised, greedy, 0))
    assigned = arm > 0
    is_offer = assigned if lost is None else assigned & ~lost
    chosen = np.where(assigned, _CODE["best_net_value"], _CODE["below_threshold"])
    out = np.where(everywhere, _CODE["global_holdout"], _CODE["holdout"])
    code = np.where(is_holdout, out, np.where(randomised, chosen, code))
    code[exploring] = _CODE["exploration"]
    if lost is not None:
        code[lost] = _CODE["budget_exhausted"]
    sent = np.where(is_offer, arm, 0)
    expected_cost = of_arm(cost, sent)
    certificate: Certificate | None = None
    if allocation is not None:
        certificate = Certificate(
            budget=budget,
            spend=math.fsum(expected_cost.tolist()),
            exploration_spend=math.fsum(expected_cost[exploring].tolist()),
            value=allocation.value,
            upper_bound=allocation.upper_bound,
            gap=allocation.gap,
        )
    used = [math.fsum(of_arm(use, sent).tolist()) for use, _ in bounds[1:]]
    ways = in_draw.sum(axis=1) + 1
    pooled = _prob_of(arm, greedy, ways, shares, shares.h)
    return Decisions(
        customer_id=np.array(customer_ids, dtype=object),
        arm=arm,
        is_offer=is_offer,
        reason=_REASONS[code],
        assignment_prob=np.where(is_open, pooled, 1.0),
        probs=_probs(greedy, in_draw, ways, shares, 0.0),
        eligible=in_draw,
        is_holdout=is_holdout,
        is_exploration=exploring,
        greedy=greedy,
        expected_incremental_profit=of_arm(reward, sent),
        expected_cost=expected_cost,
        shares=shares,
        shadow_price=shadow_price,
        certificate=certificate,
        used=tuple(
            LimitUse(each.name, each.most, amount, prices[each.name])
            for each, amount in zip(limits, used, strict=True)
            if prices
        ),
    )


def _bps(share: float) -> int:
    return round(share * BUCKETS)


def _checked_reasons(given: Sequence[str | None] | npt.NDArray[Any] | None, n: int) -> IntArray:
    """(n,) codes of the given reasons, 0 where there is none."""
    if given is None:
        return np.zeros(n, dtype=np.int64)
    if len(given) != n:
        raise DesignError(f"pre_reasons: expected {n} entries, found {len(given)}.")
    try:
        code = np.array([_CODE[entry] for entry in given], dtype=np.int64)
    except (KeyError, TypeError):
        code = np.full(n, len(_REASONS))
    if (code > len(BEFORE_RANDOMISATION)).any():
        wrong = sorted({repr(entry) for entry in given if entry not in _BEFORE})
        raise DesignError(
            f"pre_reasons: expected none or one of {', '.join(BEFORE_RANDOMISATION)}, "
            f"found {', '.join(wrong[:5])}."
        )
    return code


def _remove_arms(
    code: IntArray,
    shape: tuple[int, ...],
    eligible: BoolArray | None,
    offered: BoolArray | None,
    in_stock: BoolArray | None,
    bounds: Sequence[tuple[FloatArray, float]],
) -> BoolArray:
    """(n, K) arms that take part in the draw; sets the code of customers who have none left.

    bounds: (uses, most) of the budget and of every limit.
    """
    n, arms = shape
    masks = []
    for name, given, wanted, reason in (
        ("eligible", eligible, (n, arms), "not_eligible"),
        ("offered", offered, (arms,), "coupon_expired"),
        ("in_stock", in_stock, (arms,), "coupon_out_of_stock"),
    ):
        mask = np.ones(wanted, dtype=bool) if given is None else np.asarray(given, dtype=bool)
        if mask.shape != wanted:
            raise DesignError(f"{name}: expected shape {wanted}, found {mask.shape}.")
        masks.append((mask, _CODE[reason]))
    masks += [(use <= most, _CODE["budget_exhausted"]) for use, most in bounds]
    is_open = code == 0
    left = np.empty((n, arms), dtype=bool)
    left[:] = is_open[:, None]
    for mask, _ in masks:
        left &= mask
    if (left.any(axis=1) == is_open).all():
        return left
    # Some have no arm left: at which step was it the last one?
    rest = np.ones((n, arms), dtype=bool)
    for step, (mask, why) in enumerate(masks):
        rest &= mask
        if arms or step:
            code[(code == 0) & ~rest.any(axis=1)] = why
    return left
