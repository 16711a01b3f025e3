"""Population values that features and segments use: fitted once, versioned, an explicit input."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import compute, present_tables
from features.catalogue.response import PRIOR_OFFERS
from features.config import Config
from features.engines import on_engine
from features.errors import DataError
from features.grains import Workbench
from features.prices import Prices, fit_prices
from features.registry import available, closure, feature_names
from features.relations import gaps
from features.spine import Scratch, load_spine, naive_utc, seen_customers
from features.tables import Tables

DEFAULT_GAP_DAYS = 30.0
TERCILES = (1 / 3, 2 / 3)
QUINTILES = (0.2, 0.4, 0.6, 0.8)
AXES = {
    "recency": "recency_days",
    "frequency": "order_days_365d",
    "monetary": "spend_365d",
}
# Low responders are the bottom 40% of the response rate, high ones the top 20%.
RESPONSE_QUANTILES = (0.4, 0.8)
MIN_MATURED_OFFERS = 3
CUT_FEATURES = ("spend_total", "orders_total", *AXES.values())
OFFER_COUNTS = ("matured_offers_365d", "responded_offers_365d")


@dataclass(frozen=True)
class FrozenValues:
    """Cut points, medians and rates of the population at a reference date.

    version: name of this set of values; at: the reference date, UTC (None: not fitted).
    median_gap_days: median gap between successive order days (m), days.
    response_rate: share of matured offers of age ≤ 365 that were responded to (p).
    spend_high: quantile of spend_total (`segments.high_spend_quantile`) among customers with a
    valid order; currency.
    recency_median, frequency_median, monetary_median: of recency_days, order_days_365d and
    spend_365d among customers with an order day in 365 days.
    recency_cuts, frequency_cuts, monetary_cuts: their terciles, ascending; *_quintiles likewise.
    prices: per category its list unit prices (millionths, ascending) and the share of lines at or
    below each (`features.prices`); only where price_percentile_365d is configured.
    response_low, response_high: 0.40 and 0.80 quantile of response_rate_365d among customers with
    at least three matured offers of age ≤ 365.

    A cut that could not be fitted is None (or no cuts): nothing passes it.
    """

    version: str = "default"
    at: datetime | None = None
    median_gap_days: float = DEFAULT_GAP_DAYS
    response_rate: float = 0.0
    spend_high: float | None = None
    recency_median: float | None = None
    frequency_median: float | None = None
    monetary_median: float | None = None
    recency_cuts: tuple[float, ...] = ()
    frequency_cuts: tuple[float, ...] = ()
    monetary_cuts: tuple[float, ...] = ()
    recency_quintiles: tuple[float, ...] = ()
    frequency_quintiles: tuple[float, ...] = ()
    monetary_quintiles: tuple[float, ...] = ()
    response_low: float | None = None
    response_high: float | None = None
    prices: Prices = field(default_factory=dict)

    def score_cuts(self, levels: int) -> tuple[tuple[float, ...], ...]:
        """Cuts of recency, frequency and money for scores of 3 or 5 levels."""
        if levels == 5:
            return self.recency_quintiles, self.frequency_quintiles, self.monetary_quintiles
        return self.recency_cuts, self.frequency_cuts, self.monetary_cuts

    def to_json(self) -> str:
        """One JSON object; `at` as ISO 8601 in UTC."""
        values = asdict(self)
        values["at"] = None if self.at is None else naive_utc(self.at).isoformat() + "Z"
        return json.dumps(values, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> FrozenValues:
        """The inverse of `to_json`.

        Raises:
            DataError: not such an object.
        """
        try:
            values = json.loads(text)
            names = {f.name for f in fields(cls)}
            if not isinstance(values, dict) or set(values) != names:
                raise ValueError(f"an object with the keys {', '.join(sorted(names))}")
            if values["at"] is not None:
                values["at"] = datetime.fromisoformat(values["at"]).astimezone(UTC)
            for name, value in values.items():
                if isinstance(value, list):
                    values[name] = tuple(float(v) for v in value)
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise DataError(
                "frozen values",
                expected="the JSON that a fit wrote",
                found=str(error),
                remedy="Fit the frozen values again.",
            ) from error


def fit_frozen(tables: Tables, at: datetime, config: Config) -> FrozenValues:
    """Fit all frozen values at a reference date, from rows strictly before it.

    All customers seen before `at` count. Quantiles interpolate linearly; values are rounded to 6
    decimals. What there is no data for keeps its default.
    """
    moment = naive_utc(at)
    values: dict[str, Any] = {}
    spine = seen_customers(tables, moment)
    present = present_tables(tables, config)
    if len(spine) and "transactions" in present:
        there = on_engine(tables, config)
        with Scratch(there.con) as scratch:
            loaded = load_spine(spine, config.timezone, scratch)
            work = Workbench(there, loaded, config, FrozenValues(), scratch)
            middle = scratch.fetch(gaps(work).agg(days=lambda gap: gap.days.median()))
            between = middle["days"][0].as_py()
            if between is not None:
                values["median_gap_days"] = _round(between)
            if "price_percentile_365d" in feature_names(config):
                values["prices"] = fit_prices(work)
            names = [n for n in (*CUT_FEATURES, *OFFER_COUNTS) if available(n, present)]
            frame = pd.DataFrame(compute(work, closure(names)))
            values |= _cuts(frame, config.segments.high_spend_quantile)
            if "exposures" in present:
                values |= _responses(*(frame[name].to_numpy() for name in OFFER_COUNTS))
    at_utc = moment.replace(tzinfo=UTC)
    digest = hashlib.sha256(FrozenValues("", at_utc, **values).to_json().encode()).hexdigest()
    return FrozenValues(f"{moment:%Y%m%d}-{digest[:8]}", at_utc, **values)


def _cuts(frame: pd.DataFrame, high_spend: float) -> dict[str, Any]:
    buyers = frame.loc[frame["orders_total"] > 0, "spend_total"]
    recent = frame[frame["order_days_365d"] > 0]
    cuts: dict[str, Any] = {}
    if len(buyers):
        cuts["spend_high"] = _round(np.quantile(buyers, high_spend))
    if len(recent):
        for axis, name in AXES.items():
            cuts[f"{axis}_median"] = _round(np.median(recent[name]))
            for kind, points in (("cuts", TERCILES), ("quintiles", QUINTILES)):
                found = np.quantile(recent[name], points)
                cuts[f"{axis}_{kind}"] = tuple(_round(v) for v in found)
    return cuts


def _responses(
    matured: npt.NDArray[np.float64], responded: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Response rate of the population, and the cuts of the customers' own rates."""
    if not matured.sum():
        return {}
    rate = _round(responded.sum() / matured.sum())
    values = {"response_rate": rate}
    known = matured >= MIN_MATURED_OFFERS
    if known.any():
        own = (responded[known] + PRIOR_OFFERS * rate) / (matured[known] + PRIOR_OFFERS)
        low, high = np.quantile(own, RESPONSE_QUANTILES)
        values |= {"response_low": _round(low), "response_high": _round(high)}
    return values


def _round(value: Any) -> float:
    return round(float(value), 6)
