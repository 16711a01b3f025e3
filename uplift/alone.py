"""`policy.decide` at a shadow price for one customer after the other, in plain numbers.

A step of numpy costs 1 to 3 microseconds however short its arrays are, and `decide` takes a hundred
of them; one customer among a few arms is decided in the time of ten. The result is the same to the
last bit (tests/unit/uplift/test_alone.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uplift.draws import BUCKETS, digests
from uplift.policy import GLOBAL_SCOPE, Reason, Shares


class Drawn(NamedTuple):
    """One customer's entries of `policy.Decisions`. profit, cost: of the offer, currency."""

    arm: int
    reason: Reason
    assignment_prob: float
    probs: tuple[float, ...]
    is_holdout: bool
    is_exploration: bool
    profit: float
    cost: float


@dataclass(frozen=True)
class Alone:
    """The rules by which each customer of one window of a campaign is decided alone.

    only_drawn: (K,) arms that only draws may give. Other arguments as of `policy.decide`.
    """

    shares: Shares
    salt: bytes
    campaign_id: str
    window_id: int
    shadow_price: float
    min_profit: float
    only_drawn: Sequence[bool]

    def decide(
        self,
        customer_id: str,
        reward: Sequence[float],
        cost: Sequence[float],
        toll: Sequence[float] | None,
        in_draw: Sequence[bool],
        refused: Reason | None,
    ) -> Drawn:
        """reward, cost, toll: (K,) as of `policy.decide`, finite, costs not below 0. in_draw: (K,)
        arms that take part in the draw, one at least, or none where the customer is refused."""
        shares = self.shares
        eps, h = shares.exploration, shares.h
        if refused is not None:
            in_draw = [False] * len(in_draw)
        ways = [0, *(k for k, there in enumerate(in_draw, 1) if there)]
        greedy = self._greedy(reward, cost, toll, in_draw)
        share = eps / len(ways)
        probs = [share, *(share if there else 0.0 for there in in_draw)]
        probs[greedy] += 1.0 - eps
        if refused is not None:
            return Drawn(0, refused, 1.0, tuple(probs), False, False, 0.0, 0.0)
        window = f"{self.campaign_id}/{self.window_id}"
        arm, reason, exploring = 0, Reason.HOLDOUT, False
        if self._below(shares.global_holdout, "holdout", GLOBAL_SCOPE, customer_id):
            reason = Reason.GLOBAL_HOLDOUT
        elif not self._below(shares.holdout, "holdout", self.campaign_id, customer_id):
            exploring = self._below(eps, "explore", window, customer_id)
            if exploring:
                arm = ways[self._scaled("arm", window, customer_id, len(ways))]
                reason = Reason.EXPLORATION
            else:
                arm = greedy
                reason = Reason.BEST_NET_VALUE if arm else Reason.BELOW_THRESHOLD
        pooled = (1.0 - h) * eps / len(ways)
        if arm == greedy:
            pooled += (1.0 - h) * (1.0 - eps)
        if arm == 0:
            pooled += h
        held = reason in (Reason.HOLDOUT, Reason.GLOBAL_HOLDOUT)
        profit, price = (reward[arm - 1], cost[arm - 1]) if arm else (0.0, 0.0)
        return Drawn(arm, reason, pooled, tuple(probs), held, exploring, profit, price)

    def _greedy(
        self,
        reward: Sequence[float],
        cost: Sequence[float],
        toll: Sequence[float] | None,
        in_draw: Sequence[bool],
    ) -> int:
        """The arm of greatest net worth above 0; of equal ones the cheaper, then the first."""
        best, least, found = 0.0, math.inf, 0
        # What brings nothing is no better than control: prices and costs are never below 0.
        enough = max(self.min_profit, 0.0)
        for k, there in enumerate(in_draw):
            if not there or self.only_drawn[k] or reward[k] < enough:
                continue
            worth = reward[k] if toll is None else reward[k] - toll[k]
            net = worth - self.shadow_price * cost[k]
            if net > best or (found and net == best and cost[k] < least):
                best, least, found = net, cost[k], k + 1
        return found

    def _below(self, share: float, label: str, scope: str, customer_id: str) -> bool:
        size = round(share * BUCKETS)
        return size > 0 and self._scaled(label, scope, customer_id, BUCKETS) < size

    def _scaled(self, label: str, scope: str, customer_id: str, size: int) -> int:
        """As `draws.bucket` and `draws.index`."""
        found = digests(self.salt, f"{label}\x1f{scope}\x1f".encode(), [customer_id])
        return int.from_bytes(found[:8], "big") * size >> 64
