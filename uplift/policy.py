"""From scores to a logged decision: hold out, explore, else take the best offer.

Every draw is a keyed hash of the customer's id, so a decision needs no state, does not depend on
who else is in the batch, and can be repeated by anyone who has the salt. The probability of every
decision is logged with it; without it nothing can be learned from the platform's own decisions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.allocation import Allocation, Chunk, checked_scores, limit_of, of_arm
from uplift.data import BoolArray, FloatArray, IntArray
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

BUCKETS = 10_000
GLOBAL_SCOPE = "_global"
_BLOCK = 64  # bytes, of SHA-256
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))

Texts = npt.NDArray[np.object_]
Words = npt.NDArray[np.uint64]


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
_KNOWN: dict[str | None, str] = {None: "", "": "", **{str(r): r for r in BEFORE_RANDOMISATION}}
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


def bucket(salt: bytes, label: str, scope: str, customer_ids: Sequence[str]) -> IntArray:
    """(n,) hash buckets in [0, 10000).

    int(HMAC_SHA256(salt, label \\x1f scope \\x1f customer_id)[:8], big-endian) * 10000 >> 64; a
    customer is in a share when the bucket is below it, so a larger share only adds customers.
    """
    return _scaled(_words(salt, label, scope, customer_ids)[:, 0], BUCKETS)


def index(
    salt: bytes, scope: str, customer_ids: Sequence[str], arms: int | npt.NDArray[Any]
) -> IntArray:
    """(n,) indexes in [0, arms) of the draw among `arms` (a number, or one per customer).

    int(HMAC_SHA256(salt, "arm" \\x1f scope \\x1f customer_id)[:8], big-endian) * arms >> 64.
    """
    word = _words(salt, "arm", scope, customer_ids)[:, 0]
    return _scaled(word, arms)


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
    h = shares.h if held_out else 0.0
    drawn = (1.0 - h) * shares.exploration / in_draw.sum(axis=1, keepdims=True)
    probs = np.where(in_draw, drawn, 0.0)
    probs[np.arange(n), choice] += (1.0 - h) * (1.0 - shares.exploration)
    probs[:, 0] += h
    return probs


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
    reason = _checked_reasons(pre_reasons, n)
    # What a refused customer would have scored must not matter, and may be missing.
    reward = np.where((reason == "")[:, None], reward, 0.0)
    cost = np.where((reason == "")[:, None], cost, 0.0)
    reward, cost = checked_scores(reward, cost)
    limit = limit_of(budget)
    bounds = [(cost, limit), *((uses_of(each, cost.shape), float(each.most)) for each in limits)]
    in_draw = _remove_arms(reason, eligible, offered, in_stock, bounds)

    everywhere = _within(shares.global_holdout, salt, GLOBAL_SCOPE, customer_ids)
    here = _within(shares.holdout, salt, campaign_id, customer_ids)
    is_open = reason == ""
    is_holdout = is_open & (everywhere | here)
    randomised = is_open & ~is_holdout

    scope = f"{campaign_id}/{window_id}"
    words = _words(salt, "explore", scope, customer_ids)
    wished = np.arange(_bps(shares.exploration) + 1) / BUCKETS
    share = affordable_share(wished, randomised, in_draw, bounds)
    shares = Shares(shares.holdout, share, shares.global_holdout)
    exploring = randomised & (_scaled(words[:, 0], BUCKETS) < _bps(shares.exploration))
    drawn = np.zeros(n, dtype=np.int64)
    rows = np.flatnonzero(exploring)
    if len(rows):
        drawn[rows] = _draw(salt, scope, [customer_ids[i] for i in rows.tolist()], in_draw[rows])

    lost = np.zeros(n, dtype=bool)
    allocation: Allocation | None = None
    prices: Mapping[str, float] = {}
    choosable = in_draw if exploration_only is None else in_draw & ~np.asarray(exploration_only)
    if shadow_price is not None:
        greedy = at_prices(reward, cost, shadow_price, toll, min_profit, choosable)
    else:
        for use, most in bounds:
            lost |= beyond(most, np.where(lost, 0.0, of_arm(use, drawn)), words[:, 1])
        kept = np.where(lost, 0, drawn)
        left = [left_of(most, math.fsum(of_arm(use, kept).tolist())) for use, most in bounds]
        # Independent of the first word, which says who explores.
        whole = Chunk(reward, cost, choosable, randomised & ~exploring, words[:, 1])
        if limits:
            rest = [replace(each, most=most) for each, most in zip(limits, left[1:], strict=True)]
            allocation, prices = spend_jointly(whole, left[0], rest, min_profit)
        else:
            allocation = spend_alone(whole, left[0], min_profit)
        greedy, shadow_price = allocation.choice, allocation.shadow_price

    arm = np.where(exploring, drawn, np.where(randomised, greedy, 0))
    is_offer = (arm > 0) & ~lost
    reason[is_holdout] = Reason.HOLDOUT
    reason[is_holdout & everywhere] = Reason.GLOBAL_HOLDOUT
    chosen = randomised & ~exploring
    reason[chosen & (arm > 0)] = Reason.BEST_NET_VALUE
    reason[chosen & (arm == 0)] = Reason.BELOW_THRESHOLD
    reason[exploring] = Reason.EXPLORATION
    reason[lost] = Reason.BUDGET_EXHAUSTED
    expected_cost = np.where(is_offer, of_arm(cost, arm), 0.0)
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
    sent = np.where(is_offer, arm, 0)
    used = [math.fsum(of_arm(use, sent).tolist()) for use, _ in bounds[1:]]
    pooled = assignment_probs(greedy, in_draw, shares)[np.arange(n), arm]
    return Decisions(
        customer_id=np.array(customer_ids, dtype=object),
        arm=arm,
        is_offer=is_offer,
        reason=reason,
        assignment_prob=np.where(is_open, pooled, 1.0),
        probs=assignment_probs(greedy, in_draw, shares, held_out=False),
        eligible=in_draw,
        is_holdout=is_holdout,
        is_exploration=exploring,
        greedy=greedy,
        expected_incremental_profit=np.where(is_offer, of_arm(reward, arm), 0.0),
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


def _words(salt: bytes, label: str, scope: str, customer_ids: Sequence[str]) -> Words:
    """(n, 4) the HMAC-SHA256 digest of each customer as four unsigned integers."""
    prefix = f"{label}\x1f{scope}\x1f".encode()
    words = np.frombuffer(digests(salt, prefix, customer_ids), dtype=">u8").astype(np.uint64)
    return words.reshape(len(customer_ids), 4)


def digests(salt: bytes, prefix: bytes, customer_ids: Sequence[str]) -> bytes:
    """The HMAC-SHA256 digests of prefix + customer_id, 32 bytes each, one after the other."""
    key = hashlib.sha256(salt).digest() if len(salt) > _BLOCK else salt
    key = key.ljust(_BLOCK, b"\0")
    # HMAC written out (RFC 2104): both halves of the key are absorbed once, not per customer.
    inner = hashlib.sha256(key.translate(_INNER) + prefix)
    outer = hashlib.sha256(key.translate(_OUTER))
    found = bytearray()
    for customer_id in customer_ids:
        message, keyed = inner.copy(), outer.copy()
        message.update(customer_id.encode())
        keyed.update(message.digest())
        found += keyed.digest()
    return bytes(found)


def _scaled(words: Words, size: int | npt.NDArray[Any]) -> IntArray:
    """words * size >> 64 without the overflow, for size < 2**32."""
    times = np.asarray(size, dtype=np.uint64)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    carried = ((words & low) * times) >> half
    return (((words >> half) * times + carried) >> half).astype(np.int64)


def _bps(share: float) -> int:
    return round(share * BUCKETS)


def _within(share: float, salt: bytes, scope: str, customer_ids: Sequence[str]) -> BoolArray:
    if share == 0.0:
        return np.zeros(len(customer_ids), dtype=bool)
    return bucket(salt, "holdout", scope, customer_ids) < _bps(share)


def _draw(salt: bytes, scope: str, customer_ids: Sequence[str], in_draw: BoolArray) -> IntArray:
    """(n,) uniform draw among control and the eligible arms, in order of their code."""
    position = index(salt, scope, customer_ids, in_draw.sum(axis=1) + 1)
    # Columns before the position-th eligible one have a smaller running count.
    column = (in_draw.cumsum(axis=1) < position[:, None]).sum(axis=1)
    return np.where(position > 0, column + 1, 0)


def _checked_reasons(given: Sequence[str | None] | npt.NDArray[Any] | None, n: int) -> Texts:
    """(n,) the given reasons, "" where there is none."""
    reason = np.full(n, "", dtype=object)
    if given is None:
        return reason
    if len(given) != n:
        raise DesignError(f"pre_reasons: expected {n} entries, found {len(given)}.")
    try:
        reason[:] = [_KNOWN[entry] for entry in given]
    except (KeyError, TypeError):
        wrong = sorted({repr(entry) for entry in given if entry not in _KNOWN})
        raise DesignError(
            f"pre_reasons: expected none or one of {', '.join(BEFORE_RANDOMISATION)}, "
            f"found {', '.join(wrong[:5])}."
        ) from None
    return reason


def _remove_arms(
    reason: Texts,
    eligible: BoolArray | None,
    offered: BoolArray | None,
    in_stock: BoolArray | None,
    bounds: Sequence[tuple[FloatArray, float]],
) -> BoolArray:
    """(n, K) arms that take part in the draw; sets the reason of customers who have none left.

    bounds: (uses, most) of the budget and of every limit.
    """
    n, arms = shape = bounds[0][0].shape
    left = np.ones(shape, dtype=bool) if eligible is None else np.array(eligible, dtype=bool)
    if left.shape != shape:
        raise DesignError(f"eligible: expected shape {(n, arms)}, found {left.shape}.")
    left &= (reason == "")[:, None]
    if arms:
        reason[(reason == "") & ~left.any(axis=1)] = Reason.NOT_ELIGIBLE
    for name, arms_left, code in (
        ("offered", offered, Reason.COUPON_EXPIRED),
        ("in_stock", in_stock, Reason.COUPON_OUT_OF_STOCK),
    ):
        there = np.ones(arms, dtype=bool) if arms_left is None else np.asarray(arms_left, bool)
        if there.shape != (arms,):
            raise DesignError(f"{name}: expected shape {(arms,)}, found {there.shape}.")
        left &= there
        reason[(reason == "") & ~left.any(axis=1)] = code
    for use, most in bounds:
        left &= use <= most
    reason[(reason == "") & ~left.any(axis=1)] = Reason.BUDGET_EXHAUSTED
    return left
