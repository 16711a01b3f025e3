"""Labels of customers: response to offers, novelty, price, deal hunting, churn warning.

The rules in words, and the names, are in docs/segments.md. A label adds candidate offers at most:
a high responder may be a sure buyer.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.frozen import MIN_MATURED_OFFERS, FrozenValues
from features.segments import Flags, numbers, spend_level

LABEL_FEATURES = (
    "orders_total",
    "order_days_total",
    "order_days_365d",
    "orders_365d",
    "spend_365d",
    "overdue_ratio",
    "novelty_share_365d",
    "discount_rate_365d",
    "full_price_orders_365d",
    "price_sensitivity_score",
    "matured_offers_365d",
    "response_rate_365d",
)
LABELS = (
    "high_responder",
    "low_responder",
    "new_buyer",
    "repeat_buyer",
    "price_sensitive",
    "novelty_seeker",
    "deal_hunter",
    "churn_warning",
)
CHURN_PROBABILITY = 0.6
# Cuts are rounded to 6 decimals, and many customers share a rate, some of them the cut's own.
TOLERANCE = 1e-6


def labels(
    frame: pd.DataFrame,
    lifecycle_stage: pd.Series,
    frozen: FrozenValues,
    churn: npt.NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Labels of each row of a frame that has the columns `LABEL_FEATURES`.

    lifecycle_stage: of `segments`, same rows; churn: calibrated probability of churn per row, NaN
    where no model says one.

    Columns: response (high_responder, mid, low_responder, unknown), one boolean column per name of
    `LABELS`, and labels: the names that hold, in that order, separated by commas ("" for none). A
    comparison with NULL does not hold.

    Raises:
        DataError: the frame lacks a column.
    """
    f = numbers(frame, LABEL_FEATURES)
    response = responses(f["matured_offers_365d"], f["response_rate_365d"], frozen)
    # n is order days whatever the tiers count: labels speak of rhythm.
    n = f["order_days_total"]
    often = f["order_days_365d"] >= 3
    declining = lifecycle_stage.to_numpy() == "declining"
    warned = declining & (spend_level(f["spend_365d"], frozen) >= 2)
    if churn is not None:
        warned |= np.asarray(churn, dtype=np.float64) >= CHURN_PROBABILITY
    flags: dict[str, Flags] = {
        "high_responder": response == "high_responder",
        "low_responder": response == "low_responder",
        "new_buyer": n == 1,
        "repeat_buyer": n >= 2,
        "price_sensitive": (f["price_sensitivity_score"] >= 0.6) & (f["orders_365d"] >= 3),
        "novelty_seeker": (f["novelty_share_365d"] >= 0.5) & often,
        "deal_hunter": (f["orders_total"] > 0)
        & (f["full_price_orders_365d"] == 0)
        & (f["discount_rate_365d"] >= 0.25)
        & (often | ((n == 1) & (f["overdue_ratio"] > 1.5))),
        "churn_warning": warned,
    }
    columns = {"response": pd.Series(response, frame.index, dtype=object)}
    columns |= {name: pd.Series(flags[name], frame.index) for name in LABELS}
    columns["labels"] = pd.Series(_joined([flags[n] for n in LABELS]), frame.index, dtype=object)
    return pd.DataFrame(columns, index=frame.index)


def responses(
    matured: npt.NDArray[np.float64], rate: npt.NDArray[np.float64], frozen: FrozenValues
) -> npt.NDArray[np.object_]:
    """Response class: the cuts themselves count as high and low; one shared cut is neither."""
    low = np.nan if frozen.response_low is None else frozen.response_low
    high = np.nan if frozen.response_high is None else frozen.response_high
    above, below = rate > high - TOLERANCE, rate < low + TOLERANCE
    found = np.full(len(rate), "mid", dtype=object)
    found[above & ~below] = "high_responder"
    found[below & ~above] = "low_responder"
    found[~(matured >= MIN_MATURED_OFFERS)] = "unknown"
    return found


def _joined(flags: list[Flags]) -> npt.NDArray[np.object_]:
    """Names of the flags that hold, through a table of all their combinations."""
    texts = [
        ",".join(itertools.compress(LABELS, reversed(bits)))
        for bits in itertools.product((0, 1), repeat=len(LABELS))
    ]
    code = np.zeros(len(flags[0]), dtype=np.int64)
    for i, flag in enumerate(flags):
        code += flag.astype(np.int64) << i
    table: npt.NDArray[np.object_] = np.array(texts, dtype=object)
    return table[code]
