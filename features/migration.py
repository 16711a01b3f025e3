"""Who moved between segments from one moment to another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from features.build import build_features
from features.config import Config
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues, fit_frozen
from features.segment_names import COLUMNS, SCORES, score_ids, segments_of
from features.segments import SEGMENT_FEATURES, segments
from features.spine import all_customers, naive_utc
from features.tables import Tables

MIGRATION_SCHEMES = ("tier", "rfm_class", "stage", "r_score", "f_score", "m_score")
NOT_SEEN = "not_seen"


@dataclass(frozen=True)
class Migration:
    """Segments at t0 × segments at t1, under the same frozen cuts.

    counts: customers, a row per segment at t0 and the row `not_seen` (no row of data before t0), a
    column per segment at t1; the cells sum to the customers known at t1. shares: of each row;
    NaN in a row without customers. changed: customer_id, before, after of who moved, newcomers
    (before = not_seen) among them, by id.
    """

    scheme: str
    t0: datetime
    t1: datetime
    frozen: FrozenValues
    counts: pd.DataFrame
    shares: pd.DataFrame
    changed: pd.DataFrame


def migration(
    tables: Tables,
    scheme: str,
    t0: datetime,
    t1: datetime,
    config: Config,
    frozen: FrozenValues | None = None,
) -> Migration:
    """The migration matrix of a scheme of `MIGRATION_SCHEMES`; each date sees only earlier rows.

    frozen: cuts for both dates; None: fitted at t0.

    Raises:
        ConfigError: an unknown scheme, or t1 not after t0.
        DataError: no transactions, or none before t0.
    """
    if scheme not in MIGRATION_SCHEMES:
        raise ConfigError(
            "scheme",
            expected=f"one of {', '.join(MIGRATION_SCHEMES)}",
            found=repr(scheme),
            remedy="Write one of them.",
        )
    first, second = naive_utc(t0), naive_utc(t1)
    if first >= second:
        raise ConfigError(
            "from, to",
            expected="the first moment before the second",
            found=f"{first.isoformat()}Z and {second.isoformat()}Z",
            remedy="Exchange or change them.",
        )
    if tables.transactions is None:
        raise DataError(
            "transactions",
            expected="orders, which segments are made of",
            found="no such table",
            remedy="Give a source with transactions.",
        )
    if frozen is None:
        frozen = fit_frozen(tables, first, config)
    spines = [all_customers(tables, moment, config) for moment in (first, second)]
    spine = pd.concat([s[["customer_id", "as_of"]] for s in spines], ignore_index=True)
    built = build_features(tables, spine, SEGMENT_FEATURES, config, frozen)
    found = segments(built.frame, frozen, config.segments)[COLUMNS.get(scheme, scheme)]
    if scheme in SCORES:
        found = score_ids(found)
    both = pd.DataFrame({"customer_id": spine["customer_id"], "segment": found})
    before, after = both[: len(spines[0])], both[len(spines[0]) :]
    moved = after.merge(before, on="customer_id", how="left", suffixes=("_after", "_before"))
    moved = pd.DataFrame(
        {
            "customer_id": moved["customer_id"],
            "before": moved["segment_before"].fillna(NOT_SEEN),
            "after": moved["segment_after"],
        }
    )
    ids = [s.id for s in segments_of(scheme, config.segments.score_levels)]
    counts = pd.crosstab(moved["before"], moved["after"])
    counts = counts.reindex(index=[*ids, NOT_SEEN], columns=ids, fill_value=0)
    counts.index.name, counts.columns.name = "before", "after"
    totals = counts.sum(axis=1)
    shares = counts.div(totals.where(totals > 0), axis=0)
    changed = moved[moved["before"] != moved["after"]].reset_index(drop=True)
    return Migration(scheme, first, second, frozen, counts, shares, changed)
