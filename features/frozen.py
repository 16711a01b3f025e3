"""Population values that features and segments use: fitted once, versioned, an explicit input."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import compute, present_tables
from features.config import Config
from features.errors import DataError
from features.grains import Workbench, offers, order_days
from features.registry import closure
from features.spine import Scratch, load_spine, naive_utc, seen_customers
from features.tables import Tables

DEFAULT_GAP_DAYS = 30.0
HIGH_SPEND_QUANTILE = 0.80
TERCILES = (1 / 3, 2 / 3)
CUT_FEATURES = ("spend_total", "orders_total", "recency_days", "order_days_365d", "spend_365d")


@dataclass(frozen=True)
class FrozenValues:
    """Cut points, medians and rates of the population at a reference date.

    version: name of this set of values; at: the reference date, UTC (None: not fitted).
    median_gap_days: median gap between successive order days (m), days.
    response_rate: share of matured offers of age ≤ 365 that were responded to (p).
    spend_high: 0.80 quantile of spend_total among customers with a valid order; currency.
    recency_median, frequency_median, monetary_median: of recency_days, order_days_365d and
    spend_365d among customers with an order day in 365 days.
    recency_cuts, frequency_cuts, monetary_cuts: their terciles, ascending.

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
            for name in ("recency_cuts", "frequency_cuts", "monetary_cuts"):
                values[name] = tuple(float(v) for v in values[name])
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
        with Scratch(tables.con) as scratch:
            loaded = load_spine(spine, config.timezone, scratch)
            work = Workbench(tables, loaded, config, FrozenValues(), scratch)
            days = order_days(work).select("row", "day").to_pyarrow()
            gaps = _gaps(days["row"].to_numpy(), days["day"].to_numpy())
            if len(gaps):
                values["median_gap_days"] = _round(np.median(gaps))
            if "exposures" in present:
                given = offers(work)
                recent = given.filter(given.age <= 365)
                sums = recent.agg(
                    matured=recent.count(where=recent.matured),
                    responded=recent.count(where=recent.responded),
                ).to_pyarrow()
                matured, responded = (sums[c][0].as_py() for c in ("matured", "responded"))
                if matured:
                    values["response_rate"] = _round(responded / matured)
            values |= _cuts(work)
    at_utc = moment.replace(tzinfo=UTC)
    digest = hashlib.sha256(FrozenValues("", at_utc, **values).to_json().encode()).hexdigest()
    return FrozenValues(f"{moment:%Y%m%d}-{digest[:8]}", at_utc, **values)


def _gaps(row: npt.NDArray[np.int64], day: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Days between successive order days of the same row."""
    order = np.lexsort((day, row))
    row, day = row[order], day[order]
    gaps: npt.NDArray[np.int64] = np.diff(day)[row[1:] == row[:-1]]
    return gaps


def _cuts(work: Workbench) -> dict[str, Any]:
    frame = pd.DataFrame(compute(work, closure(CUT_FEATURES)))
    buyers = frame.loc[frame["orders_total"] > 0, "spend_total"]
    recent = frame[frame["order_days_365d"] > 0]
    cuts: dict[str, Any] = {}
    if len(buyers):
        cuts["spend_high"] = _round(np.quantile(buyers, HIGH_SPEND_QUANTILE))
    if len(recent):
        for axis, name in (
            ("recency", "recency_days"),
            ("frequency", "order_days_365d"),
            ("monetary", "spend_365d"),
        ):
            cuts[f"{axis}_median"] = _round(np.median(recent[name]))
            cuts[f"{axis}_cuts"] = tuple(_round(v) for v in np.quantile(recent[name], TERCILES))
    return cuts


def _round(value: Any) -> float:
    return round(float(value), 6)
