"""Decisions as `evaluation` and `few` make them: what is answered, and what the log keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.config import CONTROL
from serving import schemas
from serving.campaign import Campaign
from serving.rules import Rules
from serving.times import micros
from uplift.data import BoolArray
from uplift.policy import STICKY, Reason, Shares

if TYPE_CHECKING:
    from serving.scorer import Scorer

AGING = timedelta(hours=26)
MODEL_AGING = timedelta(days=45)
# From so many values on, Arrow writes decimals faster than numpy.
MANY = 64
_HOLDOUTS = {Reason.GLOBAL_HOLDOUT: "global", Reason.HOLDOUT: "campaign"}
_encode = msgspec.json.Encoder().encode


class Kept(NamedTuple):
    """Of n decisions: the assigned arm, the probability that is logged with it and those of all
    arms given not held out, what the budget must bear (millionths), what the offer is expected to
    bring (currency), and whether the customer was erased."""

    arm: list[int]
    assignment_prob: list[float]
    probs: list[tuple[float, ...]]
    reserve: list[int]
    profit: list[float]
    erased: list[bool]


@dataclass(frozen=True)
class Evaluated:
    """n decisions that are not yet anybody's: `items` have no ids; `retry_at` is when to ask again,
    microseconds; `shares` are those of the draws. What only the log needs is made when it asks."""

    scorer: Scorer
    campaign: Campaign
    ends: Sequence[int | None]
    now: datetime
    items: list[schemas.Decision]
    retry_at: list[int | None]
    shares: Shares
    make: Callable[[], Kept]

    @property
    def window(self) -> int:
        return self.campaign.window_id

    @cached_property
    def kept(self) -> Kept:
        """What only the log needs."""
        return self.make()

    def rows(self, decision_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The decisions as rows of the log, under these ids."""
        items, kept = self.items, self.kept
        snapshot, valid = self.scorer.snapshot, self.ends
        names = [CONTROL, *snapshot.arms]
        offers = [item.action == "offer" for item in items]
        sticky = [item.reason in STICKY for item in items]
        arms = kept.arm
        drawn = [
            stands or (item.reason == Reason.BUDGET_EXHAUSTED and arm > 0)
            for stands, item, arm in zip(sticky, items, arms, strict=True)
        ]
        # Many customers have the same: those of one choice among the same arms.
        told = {each: _told(names, each) for each in set(kept.probs)}
        same = {
            "campaign_id": self.campaign.campaign_id,
            "window_id": self.window,
            "holdout_share": self.shares.h,
            "exploration_share": self.shares.exploration,
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
                for erased, item in zip(kept.erased, items, strict=True)
            ],
            "sticky": sticky,
            "action": [item.action for item in items],
            "arm": [item.arm for item in items],
            "reason": [item.reason for item in items],
            "holdout_kind": [_HOLDOUTS.get(item.reason, "none") for item in items],
            "is_exploration": [item.is_exploration for item in items],
            "assignment_prob": kept.assignment_prob,
            "probs": [told[p] if some else None for p, some in zip(kept.probs, drawn, strict=True)],
            "response_propensity": [item.response_propensity for item in items],
            "uplift": [item.uplift for item in items],
            "expected_profit_micros": [item.expected_incremental_profit_micros for item in items],
            "expected_cost_micros": [item.expected_cost_micros for item in items],
            "reserved_micros": kept.reserve,
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


def profile_states(
    scorer: Scorer, rows: npt.NDArray[np.int64], known: BoolArray
) -> list[schemas.Profile]:
    """known, no_history (no order yet) or unknown, per row."""
    prospects = scorer.snapshot.population.tier.has("prospect", rows).tolist()
    return [
        "unknown" if not there else "no_history" if prospect else "known"
        for there, prospect in zip(known.tolist(), prospects, strict=True)
    ]


def warned(scorer: Scorer, rules: Rules, now: datetime) -> list[str]:
    """What a careful reader must know of decisions made now."""
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
    if len(values) < MANY:
        return list(map(short, values))
    finite = np.isfinite(values)
    decimals = pa.array(values, mask=~finite).cast(pa.string()).cast(pa.float64())
    found: list[float | None] = decimals.to_pylist()
    return found


def short(value: np.float32) -> float | None:
    """`shortest` of one."""
    return float(str(value)) if math.isfinite(value) else None
