"""From tables to a training set: outcomes, money, assignment probabilities and features.

Outcomes are measured in [assigned_at, assigned_at + window); features use rows strictly before
assigned_at. An exposure whose window is still open has no outcome yet: it is left out, counted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import build_features
from features.config import Config
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues, fit_frozen
from features.registry import feature_names
from features.spine import naive_utc
from features.tables import Tables, complete_until
from training.coupon_costs import costs_of
from uplift.data import FloatArray, Schema, TrainingSet, arm_codes
from uplift.offers import Offer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """What training learns from, and what was found on the way.

    redeemed  (n,) 1 where the exposure's coupon was redeemed in its window
    campaign, exposure  (n,) ids
    features  names computed from tables; `given`, those taken as they are
    estimated True where assignment probabilities were estimated (not randomised)
    """

    training: TrainingSet
    redeemed: FloatArray
    campaign: npt.NDArray[np.object_]
    exposure: npt.NDArray[np.object_]
    frozen: FrozenValues
    features: tuple[str, ...]
    given: tuple[str, ...]
    estimated: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def build_dataset(
    tables: Tables,
    config: Config,
    offers: tuple[Offer, ...],
    earliest: datetime | None = None,
) -> Dataset:
    """Every exposure with a complete outcome, with its features as of its assignment.

    Population values are frozen at the first assignment, or at `earliest` where that is sooner:
    the first moment that anything else of the same training learns at.

    Raises DataError where there is nothing to learn from (no exposures, no control, no closed
    window), and ConfigError where the configuration names what is not there.
    """
    if tables.exposures is None:
        raise DataError(
            "exposures",
            expected="a table of exposures (who was assigned which coupon, and when)",
            found="none",
            remedy="Training learns what offers change from past campaigns; add exposures.parquet.",
        )
    rows = _exposures(tables, config, offers)
    notes: list[str] = []
    counts = {"exposures": len(rows)}
    closed = _closed(rows, tables, config)
    counts["open_windows"] = int((~closed).sum())
    rows = rows[closed].reset_index(drop=True)
    held_out = _held_out(rows)
    if held_out.any():
        counts["held_out"] = int(held_out.sum())
        rows = rows[~held_out].reset_index(drop=True)
        notes.append(
            f"{counts['held_out']:,} held-out exposures had no part in the draw that their "
            "probabilities describe: left out"
        )
    _require(rows, tables, config, counts)
    overlap = _overlap_share(rows, config.outcome.window_days)
    if overlap > 0:
        notes.append(
            f"{overlap:.1%} of the exposures start within the outcome window of the customer's "
            "previous one: effects are given later waves"
        )
    reference = rows["assigned_at"].min().to_pydatetime()
    if earliest is not None:
        reference = min(reference, naive_utc(earliest))
    frozen = (
        fit_frozen(tables, reference, config) if tables.transactions is not None else FrozenValues()
    )
    spine = rows.rename(columns={"assigned_at": "as_of"})
    built = build_features(tables, spine, None, config, frozen)
    frame = built.frame
    dropped = list(built.missing)
    names = [n for n in feature_names(config) if n not in dropped]
    if dropped:
        notes.append(f"features without their table, left out: {', '.join(dropped)}")
    given = list(config.features.given)
    absent = [g for g in given if g not in frame.columns]
    if absent:
        raise ConfigError(
            "features.given",
            expected="columns of exposures or customers",
            found=", ".join(absent),
            remedy="Name columns that the tables have, or map them in source.columns.",
        )
    if not names and not given:
        raise ConfigError(
            "features",
            expected="at least one feature",
            found="none that the tables can give",
            remedy="Set features.set to core, or name columns in features.given.",
        )
    frame = frame[names + given]
    schema = Schema.learn(frame)
    arm = arm_codes(rows["arm"].to_numpy(dtype=object), config.arms)
    X = schema.encode(frame)
    assignment, estimated, extra = _assignment(rows, arm, config)
    notes += extra
    y, reward, converted = _outcomes(rows, arm, config, offers)
    training = TrainingSet(
        schema=schema,
        arms=tuple(config.arms),
        X=X,
        arm=arm,
        y=y,
        reward=reward,
        cost=rows["cost"].to_numpy(dtype=float),
        converted=converted,
        assignment=assignment,
        cluster=_cluster(rows, config),
        customer=rows["customer_id"].to_numpy(dtype=object),
        assigned_at=rows["assigned_at"].to_numpy(dtype="datetime64[us]"),
    )
    counts["used"] = len(rows)
    return Dataset(
        training,
        rows["redeemed"].to_numpy(dtype=float),
        rows["campaign_id"].to_numpy(dtype=object),
        rows["exposure_id"].to_numpy(dtype=object),
        frozen,
        tuple(names),
        tuple(given),
        estimated,
        counts,
        tuple(notes),
    )


def _exposures(tables: Tables, config: Config, offers: tuple[Offer, ...]) -> pd.DataFrame:
    """One row per exposure, in the order of exposure_id, with what its window brought: net,
    listed (amount + discount), orders, coupon_discount, redeemed, cost."""
    exposures = tables.exposures
    assert exposures is not None
    con = tables.con
    window = config.outcome.window_days
    numbered = con.compile(exposures.mutate(_row=ibis.row_number()))
    con.raw_sql(f"CREATE OR REPLACE TEMP TABLE _exposures AS {numbered}")
    frame: pd.DataFrame = con.raw_sql("SELECT * FROM _exposures").df()
    if tables.transactions is not None:
        brought = con.raw_sql(window_sql(con.compile(tables.transactions), window)).df()
        frame = frame.merge(brought, how="left", on="_row")
    for column in ("net", "listed", "orders", "coupon_discount", "coupon_orders"):
        values = frame[column] if column in frame.columns else pd.Series(0.0, index=frame.index)
        frame[column] = values.fillna(0.0).astype(float)
    frame["redeemed"] = ((frame["coupon_orders"] > 0) & (frame["arm"] != "control")).astype(float)
    if tables.events is not None:
        redeemed = con.raw_sql(_redeemed_sql(con.compile(tables.events), window)).df()
        frame.loc[frame["_row"].isin(redeemed["_row"]), "redeemed"] = 1.0
        frame.loc[frame["arm"] == "control", "redeemed"] = 0.0
    frame["assigned_at"] = pd.to_datetime(frame["assigned_at"], utc=True).dt.tz_localize(None)
    frame["cost"] = costs_of(tables, frame, offers, window)
    return frame.sort_values(["assigned_at", "exposure_id"], kind="stable").reset_index(drop=True)


def window_sql(transactions: str, days: int, rows: str = "_exposures") -> str:
    """SQL of what each row's customer bought in [assigned_at, assigned_at + days): net, listed,
    orders, coupon_discount, coupon_orders by _row, of rows with any line. The table `rows` has
    _row, customer_id, assigned_at and arm."""
    # An order counts when its lines in the window come to more than nothing: a fully returned
    # order is no conversion.
    return f"""
        WITH lines AS (
            SELECT e._row, t.order_id, t.amount, t.discount, t.quantity,
                   coalesce(t.coupon_id = e.arm, false) AS own
            FROM {rows} e JOIN ({transactions}) t
              ON t.customer_id = e.customer_id AND t.transacted_at >= e.assigned_at
             AND t.transacted_at < e.assigned_at + INTERVAL {int(days)} DAY
        ), orders AS (
            SELECT _row, order_id, sum(amount) AS net, sum(amount + discount) AS listed,
                   sum(CASE WHEN own THEN discount ELSE 0 END) AS coupon_discount,
                   bool_or(own) AS own,
                   coalesce(sum(amount) FILTER (amount >= 0 AND coalesce(quantity, 1) > 0), -1) >= 0
                       AND (min(amount) >= 0 OR sum(amount) > 0) AS valid
            FROM lines GROUP BY _row, order_id
        )
        SELECT _row, sum(net) AS net, sum(listed) AS listed,
               count(*) FILTER (valid) AS orders, sum(coupon_discount) AS coupon_discount,
               count(*) FILTER (own AND valid) AS coupon_orders
        FROM orders GROUP BY _row
    """


def _redeemed_sql(events: str, days: int) -> str:
    return f"""
        SELECT DISTINCT e._row
        FROM _exposures e JOIN ({events}) v
          ON v.customer_id = e.customer_id AND v.type = 'redeemed'
         AND (v.campaign_id IS NULL OR v.campaign_id = e.campaign_id)
         AND (v.coupon_id IS NULL OR v.coupon_id = e.arm OR v.campaign_id = e.campaign_id)
         AND v.occurred_at >= e.assigned_at
         AND v.occurred_at < e.assigned_at + INTERVAL {int(days)} DAY
    """


def _closed(rows: pd.DataFrame, tables: Tables, config: Config) -> np.ndarray[Any, Any]:
    """(n,) whether the outcome window is complete; a given outcome always is."""
    end = None if config.outcome.kind == "column" else complete_until(tables, config)
    if end is None:
        return np.ones(len(rows), dtype=bool)
    closes = rows["assigned_at"] + pd.Timedelta(days=config.outcome.window_days)
    return (closes <= pd.Timestamp(end).tz_localize(None)).to_numpy()


def _require(rows: pd.DataFrame, tables: Tables, config: Config, counts: Mapping[str, int]) -> None:
    if config.outcome.kind != "column" and tables.transactions is None:
        raise ConfigError(
            "outcome.kind",
            expected="column, because the source has no transactions",
            found=config.outcome.kind,
            remedy="Set outcome.kind: column and name the outcome in outcome.column.",
        )
    if not len(rows):
        raise DataError(
            "exposures",
            expected="exposures whose outcome window is complete",
            found=f"none of {counts['exposures']} ({counts['open_windows']} still open)",
            remedy="Wait, shorten outcome.window_days, or check source.complete_until.",
        )
    present = set(rows["arm"])
    if "control" not in present:
        raise DataError(
            "exposures.arm",
            expected="some exposures with arm control",
            found=f"only {', '.join(sorted(present))}",
            remedy="Without control nothing shows what the offers changed; log who was held out.",
        )
    absent = [arm for arm in config.arms if arm not in present]
    if absent:
        raise DataError(
            "exposures.arm",
            expected="exposures of every offer",
            found=f"none of {', '.join(absent)}",
            remedy="Remove these from `offers`, or add the campaigns that sent them.",
        )


def _overlap_share(rows: pd.DataFrame, days: int) -> float:
    ordered = rows.sort_values(["customer_id", "assigned_at"], kind="stable")
    gap = ordered.groupby("customer_id", sort=False)["assigned_at"].diff()
    return float((gap < pd.Timedelta(days=days)).mean())


def _outcomes(
    rows: pd.DataFrame, arm: np.ndarray[Any, Any], config: Config, offers: tuple[Offer, ...]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """y, reward (profit in currency), converted: (n,) each."""
    outcome = config.outcome
    cost = rows["cost"].to_numpy(dtype=float)
    converted = np.asarray(rows["orders"] > 0, dtype=np.float64)
    if outcome.kind == "column":
        y = _given_outcome(rows, str(outcome.column))
        return y, outcome.value * y - cost, np.asarray(y > 0, dtype=np.float64)
    if outcome.kind == "conversion":
        return converted, outcome.value * converted - cost, converted
    # profit = sum(amount - (1 - m)(amount + discount)) - contact - coupons that are no discount
    margin = float(outcome.margin_rate or 0)
    contact = np.array([0.0, *(o.contact_cost for o in offers)])[arm]
    discount = np.array([True, *(o.shows_as_discount for o in offers)])[arm]
    net = rows["net"].to_numpy(dtype=float)
    profit = net - (1 - margin) * rows["listed"].to_numpy(dtype=float) - contact
    profit = profit - np.where(discount, 0.0, np.maximum(cost - contact, 0.0))
    funded = np.array([1.0, *(o.funded_share for o in offers)])[arm]
    # What partners bear of a discount comes back.
    taken = rows["coupon_discount"].to_numpy(dtype=float)
    profit = profit + np.where(discount, (1.0 - funded) * taken, 0.0)
    return (profit if outcome.kind == "profit" else net), profit, converted


def _given_outcome(rows: pd.DataFrame, column: str) -> FloatArray:
    if column not in rows.columns:
        raise ConfigError(
            "outcome.column",
            expected="a column of exposures",
            found=repr(column),
            remedy="Name the outcome's column, or map it in source.columns.exposures.",
        )
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"exposures.{column}",
            expected="a finite number in each row",
            found=f"{int(bad.sum())} rows without",
            remedy="No purchase is 0, not empty.",
            keys=rows.loc[bad, "exposure_id"].tolist(),
        )
    return values


def _cluster(rows: pd.DataFrame, config: Config) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(n,) codes of the unit of randomisation, never finer than the customer."""
    name = config.experiment.cluster
    if name not in rows.columns:
        raise ConfigError(
            "experiment.cluster",
            expected="a column of exposures",
            found=repr(name),
            remedy="Name the column that holds the unit of randomisation, or leave customer_id.",
        )
    codes = pd.factorize(rows[name].astype(object).where(rows[name].notna(), rows["customer_id"]))
    return np.asarray(codes[0], dtype=np.int64)


def _assignment(
    rows: pd.DataFrame, arm: np.ndarray[Any, Any], config: Config
) -> tuple[FloatArray, bool, list[str]]:
    """(n, K + 1) probabilities, whether they are still to be estimated, and notes.

    In this order: the logged map of probabilities, the configured ones, the logged probability
    where it is constant per campaign, stratum and arm, the actual shares per campaign and
    stratum. An observational source gets its shares here; training replaces them by a model.
    """
    arms = ["control", *config.arms]
    n = len(rows)
    if not config.experiment.randomised:
        return _shares(rows, arm, config, len(arms)), True, []
    probabilities = np.zeros((n, len(arms)))
    known = np.zeros(n, dtype=bool)
    if "assignment_probs" in rows.columns:
        for i, value in enumerate(rows["assignment_probs"]):
            if isinstance(value, str):  # a source gives the text of the map
                value = json.loads(value)
            pairs = value.items() if isinstance(value, Mapping) else value
            if isinstance(value, Mapping | list) and value:
                named = dict(pairs)
                probabilities[i] = [float(named.get(a) or 0.0) for a in arms]
                known[i] = True
    configured = config.experiment.assignment
    if configured:
        for campaign, index in rows.groupby("campaign_id", sort=True).groups.items():
            table: Any = configured.get(str(campaign)) if _nested(configured) else configured
            if table is None:
                raise ConfigError(
                    "experiment.assignment",
                    expected=f"probabilities for campaign {campaign}",
                    found=", ".join(sorted(configured)),
                    remedy="Add the campaign, or give one map of arms for all.",
                )
            vector = np.array([float(table.get(a, 0.0)) for a in arms])
            if abs(vector.sum() - 1) > 1e-3 or set(table) - set(arms):
                raise ConfigError(
                    "experiment.assignment",
                    expected=f"probabilities of {', '.join(arms)} that sum to 1",
                    found=f"{dict(table)}",
                    remedy="Give each arm its probability; control included.",
                )
            at = np.asarray(index)
            at = at[~known[at]]
            probabilities[at] = vector / vector.sum()
            known[at] = True
    notes: list[str] = []
    if not known.all():
        left = ~known
        probabilities[left] = _logged_or_shares(rows[left], arm[left], config, len(arms), notes)
    return probabilities, False, notes


def _held_out(rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """(n,) exposures of held-out customers whose logged map of probabilities is that of customers
    who are not held out."""
    if not {"holdout_kind", "assignment_probs"} <= set(rows.columns):
        return np.zeros(len(rows), dtype=bool)
    held = rows["holdout_kind"].isin(("campaign", "global")) & rows["assignment_probs"].notna()
    return held.to_numpy(dtype=bool)


def _nested(configured: Mapping[str, Any]) -> bool:
    return all(isinstance(v, Mapping) for v in configured.values())


def _groups(rows: pd.DataFrame, config: Config) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(n,) codes of campaign and strata, within which arms were drawn alike."""
    columns = ["campaign_id", *config.experiment.strata]
    absent = [c for c in columns if c not in rows.columns]
    if absent:
        raise ConfigError(
            "experiment.strata",
            expected="columns of exposures",
            found=", ".join(absent),
            remedy="Name columns that the exposures have.",
        )
    return np.asarray(rows.groupby(columns, sort=True, dropna=False).ngroup(), dtype=np.int64)


def _shares(rows: pd.DataFrame, arm: np.ndarray[Any, Any], config: Config, arms: int) -> FloatArray:
    """(n, K + 1) actual shares of the arms within each row's campaign and stratum."""
    group = _groups(rows, config)
    table = np.zeros((group.max() + 1, arms))
    np.add.at(table, (group, arm), 1.0)
    shares: FloatArray = (table / table.sum(axis=1, keepdims=True))[group]
    return shares


def _logged_or_shares(
    rows: pd.DataFrame,
    arm: np.ndarray[Any, Any],
    config: Config,
    arms: int,
    notes: list[str],
) -> FloatArray:
    logged = rows["assignment_prob"].to_numpy(dtype=float, na_value=np.nan)
    group = _groups(rows, config)
    frame = pd.DataFrame({"group": group, "arm": arm, "p": logged})
    spread = frame.groupby(["group", "arm"])["p"].agg(["min", "max", "count"])
    constant = bool((spread["max"] - spread["min"] < 1e-9).all() and not np.isnan(logged).any())
    if constant:
        table = np.zeros((group.max() + 1, arms))
        of = spread.reset_index()
        table[of["group"], of["arm"]] = of["min"]
        if np.allclose(table.sum(axis=1), 1, atol=1e-3):
            out: FloatArray = (table / table.sum(axis=1, keepdims=True))[group]
            return out
    notes.append(
        "assignment probabilities are the actual shares of the arms per campaign and stratum"
    )
    return _shares(rows, arm, config, arms)
