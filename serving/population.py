"""Everyone a campaign may decide for, as of one moment: features, scores, consent and caps.

One table of columns, ordered by customer id. The batch command works on it in memory; the server
reads the same columns from a snapshot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import build_features
from features.config import ID_PATTERN, Config
from features.contact import FOREVER as FOREVER
from features.contact import NEVER as NEVER
from features.contact import Times, caps_free_at, consented, quiet_at, unsubscribed_channels
from features.errors import DataError
from features.frozen import FrozenValues
from features.labels import LABEL_FEATURES, labels
from features.segments import SEGMENT_FEATURES, segments
from features.send_times import SendTimes
from features.sources import open_source
from features.spine import all_customers, naive_utc
from features.tables import Tables
from serving.arms import (
    ArmRules,
    Open,
    Openness,
    arm_rules,
    best_hours,
    channels_of,
    in_micros,
    open_arms,
    open_one,
    refuse_rules,
)
from serving.unseen import Unseen, unseen_arms
from uplift.bundle import Scores, ScoringBundle
from uplift.data import BoolArray, Float32Array, FloatArray

Ids = npt.NDArray[np.bytes_]

RFM = ("recency_days", "order_days_365d", "spend_365d")


@dataclass(frozen=True)
class Labels:
    """A text column as codes of its names; code 0 is missing."""

    codes: npt.NDArray[np.uint8]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str | None] | npt.NDArray[Any]) -> Labels:
        codes, names = pd.factorize(np.asarray(values, dtype=object), sort=True)
        return cls((codes + 1).astype(np.uint8), tuple(str(name) for name in names))

    def texts(self, rows: Any = slice(None)) -> npt.NDArray[np.object_]:
        """Names of these rows, None where missing."""
        names: npt.NDArray[np.object_] = np.array([None, *self.names], dtype=object)
        return names[self.codes[rows]]  # type: ignore[no-any-return]

    def text(self, row: int) -> str | None:
        """The name of one row."""
        code = self.codes.item(row)
        return self.names[code - 1] if code else None

    def has(self, name: str, rows: Any = slice(None)) -> BoolArray:
        """(m,) whether these rows have this name."""
        code = self.names.index(name) + 1 if name in self.names else -1
        found: BoolArray = self.codes[rows] == code
        return found


@dataclass(frozen=True)
class Population:
    """n customers, d features, K arms.

    customer_id  (n,) ASCII bytes in ascending order
    X            (n, d) float32 as the bundle's schema encodes it
    scores       of the bundle, float32
    values       (n,) float32 per value target of the bundle; NaN where it does not speak of one
    tier, stage  segments; missing without transactions
    labels       names of features.labels that hold, separated by commas; missing likewise
    rfm          (n, 3) recency_days, order_days_365d, spend_365d; NaN where unknown
    consent      (n,) may be contacted, whatever the channel
    free_at      (n,) when the contact caps let the next offer through, UTC; NaT: no cap is reached
    arms         what rules leave of each arm; None without such rules
    quiet_until  (n,) when the quiet hours end, where decisions are sent at once; NaT: now
    hours        when to write to each customer, where that is asked for
    unseen       coupons that the model has not seen, which only draws may give; the rules of arms
                 then have their columns too
    toll         (n, K) what the prices of a snapshot's limits take off the worth of each arm
    """

    as_of: datetime
    customer_id: Ids
    X: Float32Array
    scores: Scores
    tier: Labels
    stage: Labels
    rfm: FloatArray
    consent: BoolArray
    free_at: Times
    labels: Labels
    values: Mapping[str, Float32Array] = field(default_factory=dict)
    simulated: bool = False
    data_digest: str = ""
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arms: ArmRules | None = None
    quiet_until: Times | None = None
    hours: SendTimes | None = None
    toll: Float32Array | None = None
    unseen: Unseen | None = None

    def __len__(self) -> int:
        return len(self.customer_id)

    def open_at(
        self, moment: np.datetime64, rows: Any = slice(None), *, entering: bool = True
    ) -> Openness:
        """What a moment leaves of these customers and of each arm; see `arms.open_arms`."""
        return open_arms(
            None if self.arms is None else self.arms.rows(rows),
            np.asarray(self.consent[rows]),
            np.asarray(self.free_at[rows]),
            self._width,
            moment,
            entering=entering,
        )

    def open_one(self, row: int, moment: int, *, entering: bool = True) -> Open:
        """`open_at` for one row, in plain numbers; moment: microseconds."""
        return open_one(
            self.arms,
            row,
            self.consent.item(row),
            self._free_micros.item(row),
            self._width,
            moment,
            entering=entering,
        )

    @property
    def _width(self) -> int:
        seen: int = self.scores.reward.shape[1]
        return seen + (0 if self.unseen is None else len(self.unseen.arms))

    @cached_property
    def _free_micros(self) -> npt.NDArray[np.int64]:
        return in_micros(self.free_at)

    def seen_only(self) -> Population:
        """Without the coupons that the model has not seen."""
        arms = self.scores.reward.shape[1]
        return replace(self, unseen=None, arms=None if self.arms is None else self.arms.first(arms))

    def widened(self) -> Population:
        """With the coupons that the model has not seen as columns of the scores: their cost, no
        effect that is known, and no profit."""
        new, scores = self.unseen, self.scores
        if new is None:
            return self
        unknown = np.full(new.cost.shape, np.nan, dtype=np.float32)
        wide = Scores(
            np.hstack([scores.cate, unknown]),
            np.hstack([scores.reward, np.zeros_like(unknown)]),
            np.hstack([scores.cost, new.cost]),
            scores.response,
        )
        return replace(self, scores=wide, unseen=None)

    def find(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], BoolArray]:
        """(m,) row of each id, and whether it is known (the row of an unknown id means nothing)."""
        wanted = np.array([i.encode("ascii", "replace") for i in ids], dtype=np.bytes_)
        if not len(self):
            return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
        # Cut to the width of the known ids: numpy would otherwise widen all of those.
        rows = self.customer_id.searchsorted(wanted.astype(self.customer_id.dtype))
        rows = np.minimum(rows, len(self) - 1)
        return rows.astype(np.int64, copy=False), self.customer_id[rows] == wanted

    def find_few(self, ids: Sequence[str]) -> list[int | None]:
        """The row of each id; None for an unknown one."""
        wanted = [i.encode("ascii", "replace") for i in ids]
        # Longer ids than all known ones are cut here, and are no known one's below.
        rows = self.customer_id.searchsorted(np.array(wanted, dtype=self.customer_id.dtype))
        n = len(self)
        return [
            row if row < n and self.customer_id.item(row) == one else None
            for row, one in zip(rows.tolist(), wanted, strict=True)
        ]


def from_source(config: Config, bundle: ScoringBundle, as_of: datetime, threads: int) -> Population:
    """All customers that the source shows before `as_of`, scored with `threads` threads.

    Raises DataError where the source cannot be used, for instance before its first row.
    """
    return from_tables(open_source(config).tables(), config, bundle, as_of, threads)


def from_tables(
    tables: Tables, config: Config, bundle: ScoringBundle, as_of: datetime, threads: int
) -> Population:
    """As `from_source`, of tables that are open already."""
    spine = all_customers(tables, as_of, config)
    frozen = FrozenValues.from_json(json.dumps(dict(bundle.frozen)))
    own = list(bundle.features["names"])
    valued = () if bundle.values is None else bundle.values.schema.names
    names = list(dict.fromkeys((*own, *valued)))
    segmented = tables.transactions is not None
    segmenting = dict.fromkeys((*SEGMENT_FEATURES, *LABEL_FEATURES, *RFM))
    extra = [n for n in segmenting if n not in names]
    built = build_features(tables, spine, names + (extra if segmented else []), config, frozen)
    frame = built.frame
    ids = spine["customer_id"].astype(str)
    order = np.argsort(_bytes(ids), kind="stable")
    values: dict[str, Float32Array] = {}
    if bundle.values is not None:
        values = bundle.values.predict(bundle.values.schema.encode(frame), threads)
    tier: Any = [None] * len(spine)
    stage = label = tier
    rfm = np.full((len(spine), len(RFM)), np.nan)
    if segmented:
        segment = segments(frame, frozen, config.segments)
        tier, stage = segment["tier"], segment["lifecycle_stage"]
        churn = values["churn"].astype(np.float64) if "churn" in values else None
        label = labels(frame, stage, frozen, churn)["labels"]
        rfm = frame[list(RFM)].to_numpy(dtype=np.float64, na_value=np.nan)
    X = bundle.schema.encode(frame)[order]
    churned = values["churn"].astype(np.float64) if "churn" in values else None
    new = None
    if bundle.arms:
        now = segment["tier"].to_numpy(dtype=object) if segmented else np.asarray(tier)
        new = unseen_arms(tables, ids, now, rfm[:, 0], as_of, config, bundle.arms)
    every = bundle.arms if new is None else (*bundle.arms, *new.arms)
    rules = arm_rules(tables, spine, every, config, frozen, churned)
    hours = best_hours(tables, spine, config)
    quiet = None
    if config.contact.send == "immediate":
        quiet = quiet_at(tables, ids, as_of, config)[1][order]
    # With channels, who unsubscribed from one may still be reached by another.
    one = unsubscribed_channels(tables, as_of)["event_id"] if channels_of(config) else None
    return Population(
        as_of=_aware(as_of),
        customer_id=_bytes(ids)[order],
        X=X,
        scores=bundle.score(X, threads=threads),
        values={target: predicted[order] for target, predicted in values.items()},
        tier=Labels.of(np.asarray(tier, dtype=object)[order]),
        stage=Labels.of(np.asarray(stage, dtype=object)[order]),
        labels=Labels.of(np.asarray(label, dtype=object)[order]),
        rfm=rfm[order],
        consent=consented(tables, ids, as_of, config, one)[order],
        free_at=caps_free_at(tables, ids, as_of, config)[order],
        simulated=tables.simulated,
        data_digest=tables.digest,
        missing=tuple(n for n in built.missing if n in names),
        notes=tables.notes,
        arms=None if rules is None else rules.rows(order),
        quiet_until=quiet,
        unseen=None if new is None else Unseen(new.arms, new.cost[order]),
        hours=None if hours is None else hours.rows(order),
    )


def from_features(
    path: Path, config: Config, bundle: ScoringBundle, as_of: datetime, threads: int
) -> Population:
    """Rows of given features with `customer_id`, Parquet or CSV, for experiments without orders.

    Consent comes from a column `marketing_consent`, else from contact.assume_consent; contact caps
    need a source and are not looked at. Raises DataError for a file that cannot be used.
    """
    where = f"--features {path}"
    refuse_rules(config, where)
    if bundle.features["names"]:
        raise DataError(
            where,
            expected="a model that was trained on given features alone",
            found=f"one that needs {len(bundle.features['names'])} features of transactions",
            remedy="Leave --features out: the features are built from the source.",
        )
    frame = _read(path, where)
    lacking = [n for n in ("customer_id", *bundle.schema.names) if n not in frame.columns]
    if lacking:
        raise DataError(
            where,
            expected=f"the columns customer_id, {', '.join(bundle.schema.names)}",
            found=f"none called {', '.join(lacking[:5])}",
            remedy="Add them.",
        )
    ids = frame["customer_id"].astype(str)
    bad = np.flatnonzero(~ids.str.fullmatch(ID_PATTERN).to_numpy(dtype=bool))
    twice = np.flatnonzero(ids.duplicated().to_numpy())
    for rows, expected, found in (
        (bad, f"customer ids that match {ID_PATTERN}", "others"),
        (twice, "each customer once", "customers twice"),
    ):
        if len(rows):
            raise DataError(
                where,
                expected=expected,
                found=f"{len(rows)} rows with {found}",
                remedy="Mend or leave out these rows (the first is row 1).",
                keys=[f"row {row + 1}" for row in rows],
            )
    if frame.empty:
        raise DataError(where, expected="rows", found="none", remedy="Give customers to score.")
    order = np.argsort(_bytes(ids), kind="stable")
    X = bundle.schema.encode(frame)[order]
    consent = np.full(len(frame), config.contact.assume_consent)
    if "marketing_consent" in frame.columns:
        said = frame["marketing_consent"].astype("boolean")
        consent = said.fillna(config.contact.assume_consent).to_numpy(dtype=bool)
    nobody = Labels.of([None] * len(frame))
    return Population(
        as_of=_aware(as_of),
        customer_id=_bytes(ids)[order],
        X=X,
        scores=bundle.score(X, threads=threads),
        tier=nobody,
        stage=nobody,
        labels=nobody,
        rfm=np.full((len(frame), len(RFM)), np.nan),
        consent=consent[order],
        free_at=np.full(len(frame), NEVER),
        simulated=config.source.kind == "simulated",
        notes=("contact caps are not looked at: a feature file shows no earlier offers",),
    )


def _read(path: Path, where: str) -> pd.DataFrame:
    import pyarrow as pa

    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype={"customer_id": "string"})
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            where,
            expected="a readable Parquet or CSV file",
            found=type(error).__name__,
            remedy="Name a file that exists, with the suffix .parquet or .csv.",
        ) from None


def _bytes(ids: pd.Series[Any]) -> Ids:
    return ids.to_numpy(dtype=object).astype(np.bytes_)


def _aware(moment: datetime) -> datetime:
    return naive_utc(moment).replace(tzinfo=UTC)
