"""The leaves of a policy tree in words, each with what held-out customers say of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uplift.data import BoolArray, Float32Array, Schema
from uplift.policy_tree import Path, PolicyTree
from uplift.scores import Estimate, ScoreMatrix, clustered_mean

SEND_NONE = "no offer"


@dataclass(frozen=True)
class Segment:
    """One leaf, on rows that the tree has not seen.

    conditions  the customers, in words; empty: everyone
    offer       a coupon id, or SEND_NONE
    share       of the rows; customers: clusters among them
    effects     per coupon: its average effect here on profit, currency per row, over the rows where
                it could be drawn; a coupon of which fewer than two customers show anything is
                left out
    """

    conditions: tuple[str, ...]
    offer: str
    rows: int
    customers: int
    share: float
    effects: Mapping[str, Estimate]

    @property
    def who(self) -> str:
        """The customers, as in a sentence."""
        return "customers with " + " and ".join(self.conditions) if self.conditions else "everyone"

    @property
    def sentence(self) -> str:
        return f"{self.who}: {self.offer}"

    @property
    def effect(self) -> Estimate | None:
        """Of the segment's own offer; None without one."""
        return self.effects.get(self.offer)

    def to_json(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "conditions": list(self.conditions),
            "offer": None if self.offer == SEND_NONE else self.offer,
            "rows": self.rows,
            "customers": self.customers,
            "share": self.share,
            "effects_on_profit": {arm: e.to_json() for arm, e in self.effects.items()},
        }


def segments(
    tree: PolicyTree,
    X: Float32Array,
    scores: ScoreMatrix,
    allowed: BoolArray,
    schema: Schema,
    arms: Sequence[str],
    missing: Collection[int],
) -> list[Segment]:
    """The leaves from left to right.

    Args:
        X: (n, d) rows that the tree was not grown on, `scores` theirs, currency.
        allowed: (n, K) arms that may be offered.
        arms: (K,) coupon ids.
        missing: positions of the features that can be missing; of the others no sentence says
            where a missing value goes.
    """
    leaf = tree.leaf_of(X)
    found = []
    for number, (path, arm) in enumerate(tree.leaves()):
        here = leaf == number
        effects = {}
        for k, name in enumerate(arms, start=1):
            rows = here & allowed[:, k - 1]
            if len(np.unique(scores.cluster[rows])) > 1:
                effects[name] = clustered_mean(scores.contrast(k)[rows], scores.cluster[rows])
        found.append(
            Segment(
                conditions=tuple(words(path, schema, missing)),
                offer=arms[arm - 1] if arm else SEND_NONE,
                rows=int(here.sum()),
                customers=len(np.unique(scores.cluster[here])),
                share=float(here.mean()),
                effects=effects,
            )
        )
    return found


def words(path: Path, schema: Schema, missing: Collection[int]) -> list[str]:
    """One condition per feature asked about, in the order in which it was asked."""
    asked = dict.fromkeys(split.feature for split, _ in path)
    return [_condition(feature, path, schema, feature in missing) for feature in asked]


def _condition(feature: int, path: Path, schema: Schema, can_miss: bool) -> str:
    name = schema.names[feature]
    low, high, unknown, known = -math.inf, math.inf, can_miss, True
    is_level, no_levels = None, []
    for split, answer in path:
        if split.feature != feature:
            continue
        unknown &= split.missing_left == answer
        if split.equals:
            level = schema.levels[name][int(split.value)]
            if answer:
                is_level = level
            else:
                no_levels.append(level)
        elif answer:
            high = min(high, split.value)
        else:
            low = max(low, split.value)
            known &= math.isfinite(split.value)
    if not known:
        return f"{name} unknown"
    if is_level is not None:
        return f"{name} {is_level}"
    said = [f"above {_number(low)}"] if math.isfinite(low) else []
    said += [f"at most {_number(high)}"] if math.isfinite(high) else []
    if no_levels:
        # Other than a level is also what is not known, so only its exclusion has to be said.
        said = [f"other than {' and '.join(no_levels)}"]
        return f"{name} {said[0]}" + (" and known" if can_miss and not unknown else "")
    if not said:
        return f"{name} known"
    return f"{name} {' and '.join(said)}" + (" or unknown" if unknown else "")


def _number(value: float) -> str:
    """1,234 or 0.125: thresholds have few digits as they are."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.6g}"
