"""Segments of a feature frame: tier, RFM class and scores, lifecycle stage.

The rules in words, and the names, are in docs/segments.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.config import TIERS, SegmentsConfig
from features.errors import DataError
from features.frozen import FrozenValues

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]

SEGMENT_FEATURES = (
    "recency_days",
    "tenure_days",
    "orders_total",
    "order_days_total",
    "order_days_365d",
    "spend_365d",
    "spend_total",
    "overdue_ratio",
)
TIER_DETAILS = ("single_cooling", "five_orders", "frequent_low_value", "champion_cooling")
LOPSIDED = 0.05
STAGES = ("lost", "declining", "mature", "growth", "novice")
RFM_CLASSES = ("HHH", "HLH", "LHH", "LLH", "HHL", "HLL", "LHL", "LLL", "prospect")


def segments(frame: pd.DataFrame, frozen: FrozenValues, rules: SegmentsConfig) -> pd.DataFrame:
    """Segments of each row of a frame that has the columns `SEGMENT_FEATURES`.

    Columns: tier, tier_detail (None where there is none), lifecycle_stage, rfm_class, r_score,
    f_score, m_score (1 low to 3 or 5 high, NaN for prospects). `rules` is the configuration's
    section `segments`; its precedence, unit, cuts and levels hold.

    Raises:
        DataError: the frame lacks a column.
    """
    f = numbers(frame, SEGMENT_FEATURES)
    buyer = f["orders_total"] > 0
    n = f["order_days_total"] if rules.frequency_unit == "order_day" else f["orders_total"]
    high = f["spend_total"] >= _cut(frozen.spend_high)
    tier, detail = tiers(f["recency_days"], n, f["tenure_days"], high, buyer, rules.tier_order)
    r_cut, f_cut, m_cut = _class_cuts(frozen, rules)
    rfm_class = rfm_classes(
        f["recency_days"] < r_cut, f["order_days_365d"] > f_cut, f["spend_365d"] > m_cut, buyer
    )
    top = spend_level(f["spend_365d"], frozen) == 3
    stage = stages(f["recency_days"], f["order_days_total"], f["overdue_ratio"], top)
    r_cuts, f_cuts, m_cuts = frozen.score_cuts(rules.score_levels)
    scores = {
        "r_score": _score(-f["recency_days"], [-cut for cut in r_cuts]),
        "f_score": _score(f["order_days_365d"], f_cuts),
        "m_score": _score(f["spend_365d"], m_cuts),
    }
    texts = {"tier": tier, "tier_detail": detail, "lifecycle_stage": stage, "rfm_class": rfm_class}
    columns = {name: pd.Series(v, frame.index, dtype=object) for name, v in texts.items()}
    columns |= {
        name: pd.Series(np.where(buyer, v, np.nan), frame.index) for name, v in scores.items()
    }
    return pd.DataFrame(columns, index=frame.index)


def numbers(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, Numbers]:
    """The named columns as float64 arrays.

    Raises:
        DataError: the frame lacks a column.
    """
    lacking = [name for name in names if name not in frame.columns]
    if lacking:
        raise DataError(
            "feature frame",
            expected=f"the columns {', '.join(names)}",
            found=f"no {', '.join(lacking)}",
            remedy="Build these features too.",
        )
    return {name: frame[name].to_numpy(dtype=np.float64) for name in names}


def tiers(
    r: Numbers,
    n: Numbers,
    t: Numbers,
    high: Flags,
    buyer: Flags,
    order: Sequence[str] = TIERS,
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Tier and tier detail; the first rule that matches, bounds inclusive.

    r: recency_days; n: order days (or orders); t: tenure_days; high: spend at or above the cut;
    buyer: has a valid order. order: the tiers by precedence, of which `regular`, the last, takes
    who matches no rule; so who is regular, and the details, do not depend on the order.
    """
    rules = {
        "prospect": ~buyer,
        "lost": r > 180,
        "sleeping": (r >= 90) & (r <= 180),
        "champion": (r <= 30) & (n > 5) & high,
        "new": t <= 30,
        "potential": (r <= 90) & (n >= 2) & (n <= 4),
    }
    tier = _first({name: rules[name] for name in order if name != "regular"}, "regular")
    regular = tier == "regular"
    details = {
        "single_cooling": regular & (n == 1) & (r >= 31) & (r <= 89),
        "five_orders": regular & (n == 5) & (r < 90) & (t > 30),
        "frequent_low_value": regular & (n > 5) & (r <= 30) & ~high & (t > 30),
        "champion_cooling": regular & (n > 5) & (r >= 31) & (r <= 89),
    }
    return tier, _first(details, None)


def stages(r: Numbers, n: Numbers, overdue: Numbers, top_spender: Flags) -> npt.NDArray[np.object_]:
    """Lifecycle stage; the first rule that matches. n: order days of all time."""
    rules = {
        "lost": (r > 365) | ((overdue > 3.0) & (r >= 30)),
        "declining": (overdue > 1.5) & (r >= 14),
        "mature": (n >= 6) & top_spender,
        "growth": n >= 2,
    }
    return _first(rules, "novice")


def rfm_classes(
    r_high: Flags, f_high: Flags, m_high: Flags, buyer: Flags
) -> npt.NDArray[np.object_]:
    """Three letters, H or L, for recency, frequency and money; `prospect` without an order."""
    letters = [np.where(high, "H", "L").astype(object) for high in (r_high, f_high, m_high)]
    joined = letters[0] + letters[1] + letters[2]
    return np.where(buyer, joined, "prospect").astype(object)


def _first(rules: dict[str, Flags], otherwise: str | None) -> npt.NDArray[np.object_]:
    names = np.array([*rules, otherwise], dtype=object)
    first = np.argmax(np.stack([*rules.values(), np.ones_like(next(iter(rules.values())))]), axis=0)
    chosen: npt.NDArray[np.object_] = names[first]
    return chosen


def spend_level(spend_365d: Numbers, frozen: FrozenValues) -> npt.NDArray[np.int64]:
    """1 low, 2 middle, 3 high by the frozen terciles, whatever `score_levels` says.

    Stages and the churn warning are defined by thirds.
    """
    return _score(spend_365d, frozen.monetary_cuts)


def rfm_warnings(found: pd.DataFrame) -> list[str]:
    """A sentence for each axis of the RFM classes with under 5% of buyers on a side."""
    classes = found.loc[found["rfm_class"] != "prospect", "rfm_class"].astype(str)
    warnings = []
    for i, axis in enumerate(("recency", "frequency", "monetary")):
        high = float((classes.str[i] == "H").mean()) if len(classes) else 0.5
        if min(high, 1 - high) < LOPSIDED:
            warnings.append(
                f"RFM axis {axis}: {100 * high:.1f}% of buyers are high, {100 - 100 * high:.1f}% "
                f"low; a side of under {100 * LOPSIDED:.0f}% says little. Other cuts: "
                "segments.rfm_method fixed with segments.rfm_cuts."
            )
    return warnings


def _class_cuts(frozen: FrozenValues, rules: SegmentsConfig) -> tuple[float, float, float]:
    if rules.rfm_method == "fixed" and rules.rfm_cuts is not None:
        return rules.rfm_cuts.recency, rules.rfm_cuts.frequency, rules.rfm_cuts.monetary
    return (
        _cut(frozen.recency_median),
        _cut(frozen.frequency_median),
        _cut(frozen.monetary_median),
    )


def _score(values: Numbers, cuts: Sequence[float]) -> npt.NDArray[np.int64]:
    """1 plus the number of cuts strictly beaten."""
    beaten = np.zeros(len(values), dtype=np.int64)
    for cut in cuts:
        beaten += values > cut
    return 1 + beaten


def _cut(value: float | None) -> float:
    return np.nan if value is None else value
