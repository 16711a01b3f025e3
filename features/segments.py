"""Segments of a feature frame: tier, RFM class and scores, lifecycle stage.

Rules and names: customer segmentation of the product's rules (tiers, eight-class RFM, stages).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import ConfigError, DataError
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
TIERS = ("prospect", "lost", "sleeping", "champion", "new", "potential", "regular")
TIER_DETAILS = ("single_cooling", "five_orders", "frequent_low_value", "champion_cooling")
STAGES = ("lost", "declining", "mature", "growth", "novice")
RFM_CLASSES = ("HHH", "HLH", "LHH", "LLH", "HHL", "HLL", "LHL", "LLL", "prospect")


def segments(
    frame: pd.DataFrame, frozen: FrozenValues, *, frequency_unit: str = "order_day"
) -> pd.DataFrame:
    """Segments of each row of a frame that has the columns `SEGMENT_FEATURES`.

    Columns: tier, tier_detail (None where there is none), lifecycle_stage, rfm_class, r_score,
    f_score, m_score (1 low to 3 high, NaN for prospects). `frequency_unit` (order_day or order)
    says what counts as n in tiers.

    Raises:
        DataError: the frame lacks a column.
        ConfigError: an unknown frequency_unit.
    """
    lacking = [name for name in SEGMENT_FEATURES if name not in frame.columns]
    if lacking:
        raise DataError(
            "feature frame",
            expected=f"the columns {', '.join(SEGMENT_FEATURES)}",
            found=f"no {', '.join(lacking)}",
            remedy="Build these features too.",
        )
    if frequency_unit not in ("order_day", "order"):
        raise ConfigError(
            "frequency_unit",
            expected="order_day or order",
            found=repr(frequency_unit),
            remedy="Write one of them.",
        )
    f = {name: frame[name].to_numpy(dtype=np.float64) for name in SEGMENT_FEATURES}
    buyer = f["orders_total"] > 0
    n = f["order_days_total"] if frequency_unit == "order_day" else f["orders_total"]
    tier, detail = tiers(
        f["recency_days"], n, f["tenure_days"], _reaches(f["spend_total"], frozen.spend_high), buyer
    )
    r_score = _score(-f["recency_days"], tuple(-cut for cut in frozen.recency_cuts))
    f_score = _score(f["order_days_365d"], frozen.frequency_cuts)
    m_score = _score(f["spend_365d"], frozen.monetary_cuts)
    rfm_class = rfm_classes(
        f["recency_days"] < _cut(frozen.recency_median),
        f["order_days_365d"] > _cut(frozen.frequency_median),
        f["spend_365d"] > _cut(frozen.monetary_median),
        buyer,
    )
    stage = stages(f["recency_days"], f["order_days_total"], f["overdue_ratio"], m_score == 3)
    texts = {"tier": tier, "tier_detail": detail, "lifecycle_stage": stage, "rfm_class": rfm_class}
    scores = {"r_score": r_score, "f_score": f_score, "m_score": m_score}
    columns = {name: pd.Series(v, frame.index, dtype=object) for name, v in texts.items()}
    columns |= {
        name: pd.Series(np.where(buyer, v, np.nan), frame.index) for name, v in scores.items()
    }
    return pd.DataFrame(columns, index=frame.index)


def tiers(
    r: Numbers, n: Numbers, t: Numbers, high: Flags, buyer: Flags
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Tier and tier detail; the first rule that matches, bounds inclusive.

    r: recency_days; n: order days (or orders); t: tenure_days; high: spend at or above the cut;
    buyer: has a valid order.
    """
    rules = {
        "prospect": ~buyer,
        "lost": r > 180,
        "sleeping": (r >= 90) & (r <= 180),
        "champion": (r <= 30) & (n > 5) & high,
        "new": t <= 30,
        "potential": (r <= 90) & (n >= 2) & (n <= 4),
    }
    tier = _first(rules, "regular")
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


def _score(values: Numbers, cuts: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """1 plus the number of cuts strictly beaten."""
    beaten = np.zeros(len(values), dtype=np.int64)
    for cut in cuts:
        beaten += values > cut
    return 1 + beaten


def _cut(value: float | None) -> float:
    return np.nan if value is None else value


def _reaches(values: Numbers, cut: float | None) -> Flags:
    return values >= _cut(cut)
