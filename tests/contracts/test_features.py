"""What every registered feature owes: the same checks over the whole catalogue.

A new feature is checked by standing in the catalogue; the last test names one that no check saw
with a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from functools import cache

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.config import Config
from features.frozen import FrozenValues, fit_frozen
from features.registry import CATALOGUE, HELPERS, get
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.oracle import features_of, helpers_of
from tests.unit.features.oracle_history import (
    Row,
    Settings,
    is_purchase,
    launches_of,
    reference_prices,
)
from tests.unit.features.random_shop import (
    CUSTOMERS,
    FEATURES,
    LAUNCHES,
    NOTHING,
    OFFERS,
    REFERENCE,
    STAGE_CLOCKS,
    make_customers,
    make_events,
    make_exposures,
    make_line,
    make_lines,
    make_spine,
)

FROZEN = FrozenValues("test", median_gap_days=21.5, response_rate=0.125)
CASES = [(1, "UTC"), (2, "Europe/Berlin"), (3, "America/New_York")]
WINDOW = ["orders_45d", "orders_365d", "order_days_45d", "spend_45d"]
NAMES = [*CATALOGUE, *HELPERS, *WINDOW]
TIMES = {"transactions": "transacted_at", "exposures": "assigned_at", "events": "occurred_at"}
# Features of the moment alone: a customer without history has them too.
OF_THE_CALENDAR = ["holiday_next_days"]
Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class Shop:
    """The rows of each table, moments, and what is fixed in a build."""

    rows: Rows
    spine: pd.DataFrame
    config: Config
    frozen: FrozenValues
    prices: dict[str, list[Fraction]]

    def tables(self) -> Tables:
        frames = {name: pd.DataFrame(rows, dtype=object) for name, rows in self.rows.items()}
        return make_tables(**frames)

    def build(self) -> pd.DataFrame:
        built = build_features(self.tables(), self.spine, NAMES, self.config, self.frozen)
        assert built.missing == ()
        return built.frame

    def slow(self) -> pd.DataFrame:
        """The slow way; an absent table is one without rows."""
        lines, features = self.rows.get("transactions", []), self.config.features
        clocks = list(self.config.stage_clocks.values())
        settings = Settings(
            zone=self.config.timezone,
            offers={offer.coupon_id: offer.model_dump() for offer in self.config.offers},
            median_gap=self.frozen.median_gap_days,
            response_rate=self.frozen.response_rate,
            prices=self.prices,
            launches=launches_of(lines),
            data_start=min((r["transacted_at"] for r in lines), default=None),
            weekend_overrides=features.weekend_overrides,
            holidays=tuple(features.holidays),
            online_channels=tuple(features.online_channels),
            mobile_payments=tuple(features.mobile_payments),
            anchors=clocks[0].anchors if clocks else {},
        )
        found = []
        for customer, as_of in self.spine.itertuples(index=False):
            own = [
                [row for row in self.rows.get(name, []) if row["customer_id"] == customer]
                for name in (*TIMES, "customers")
            ]
            what = (*own[:3], own[3][0] if own[3] else None, as_of.to_pydatetime(), settings)
            found.append(features_of(*what) | helpers_of(*what))
        return pd.DataFrame(found, dtype=object)


@cache
def shop(seed: int, zone: str) -> Shop:
    """A random shop; the frozen values of all shops are of the first."""
    rng = np.random.default_rng(seed)
    lines = make_lines(rng, zone)
    exposures = make_exposures(rng, lines)
    events = make_events(rng, exposures)
    customers = make_customers(rng, zone)
    rows = {
        "transactions": lines,
        "exposures": exposures,
        "events": events,
        "customers": customers,
    }
    spine = make_spine(rng, zone, lines, exposures, events, customers)
    config = make_config(timezone=zone, features=FEATURES, offers=OFFERS, stage_clocks=STAGE_CLOCKS)
    if (seed, zone) != CASES[0]:
        first = shop(*CASES[0])
        return Shop(rows, spine, config, first.frozen, first.prices)
    base = Shop(rows, spine, config, FROZEN, reference_prices(lines, REFERENCE))
    fitted = fit_frozen(base.tables(), REFERENCE, config)
    return replace(base, frozen=replace(FROZEN, prices=fitted.prices))


@cache
def plain(seed: int, zone: str) -> pd.DataFrame:
    return shop(seed, zone).build()


def assert_same(found: pd.Series, want: pd.Series) -> None:
    """Texts and numbers exactly; NULL equals NULL."""
    pd.testing.assert_series_equal(found, want, check_exact=True)


def assert_agrees(name: str, found: pd.Series, want: pd.Series, spine: pd.DataFrame) -> None:
    """Texts exactly, numbers but for rounding; names the rows that differ."""
    where = spine.assign(found=found, want=want)
    if get(name).dtype == "text":
        wrong = where[[a != b for a, b in zip(found, want, strict=True)]]
    else:
        numbers = np.array([math.nan if v is None else v for v in want], dtype=float)
        wrong = where[~np.isclose(found, numbers, rtol=1e-9, atol=1e-9, equal_nan=True)]
    assert wrong.empty, wrong.to_string()


# --- the future, others, and order: each variation is built once, each feature checked in it ---


def _market(lines: list[Row]) -> list[Row]:
    """What everyone knows of the market: first lines of products, and of all, as a guest's."""
    launches = launches_of(lines)
    firsts = [
        row
        for row in lines
        if is_purchase(row) and launches.get(row["product_id"]) == row["transacted_at"]
    ]
    firsts.append(min(lines, key=lambda row: row["transacted_at"]))
    return [row | {"customer_id": "guest"} for row in firsts]


@cache
def _two_futures() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each customer at a moment of its own: with its own future, and with another."""
    base = shop(*CASES[0])
    rng = np.random.default_rng(99)
    spine = base.spine.drop_duplicates("customer_id")
    rows: Rows = {"transactions": _market(base.rows["transactions"]), "customers": []}
    rows |= {name: [] for name in TIMES if name not in rows}
    sold = launches_of(rows["transactions"])
    profiles = {row["customer_id"]: row for row in base.rows["customers"]}
    for customer, moment in spine.itertuples(index=False):
        at = moment.to_pydatetime()
        own = {
            name: [
                row for row in base.rows[name] if row["customer_id"] == customer and row[time] < at
            ]
            for name, time in TIMES.items()
        }
        for name, past in own.items():
            rows[name] += past
        order = own["transactions"][0]["order_id"] if own["transactions"] else "new"
        known = [p for p in LAUNCHES if p in sold and sold[p] < at] or ["p1"]
        for when in (at, at + timedelta(microseconds=1), at + timedelta(days=3)):
            key = {"customer_id": customer}
            product = known[int(rng.integers(len(known)))]
            later = make_line(rng, customer, "later", when, product_id=product)
            back = {"order_id": order, "amount": -999.0, "quantity": -1.0}
            rows["transactions"] += [later, later | {"order_id": order}, later | back]
            offer = key | {"assigned_at": when, "arm": "M20", "variant": None}
            rows["exposures"].append(base.rows["exposures"][0] | offer)
            for given in own["exposures"] or base.rows["exposures"][:1]:
                about = {"campaign_id": given["campaign_id"], "coupon_id": given["arm"]}
                for kind in ("opened", "clicked", "redeemed", "unsubscribed", "visited"):
                    event = key | about | {"type": kind, "occurred_at": when}
                    rows["events"].append(base.rows["events"][0] | event)
        profile = profiles.get(customer)
        if profile is None or (profile["joined_at"] is not None and profile["joined_at"] >= at):
            profile = {"birth_month": 3, "gender": "x", "region": "later", "joined_at": at}
        rows["customers"].append(profile | {"customer_id": customer})
    other = replace(base, rows=rows, spine=spine).build()
    return plain(*CASES[0]).loc[spine.index].reset_index(drop=True), other


@pytest.mark.parametrize("name", NAMES)
def test_rows_at_or_after_the_moment_change_nothing(name: str) -> None:
    one, other = _two_futures()
    assert_same(one[name], other[name])


@cache
def _half_of_the_customers() -> pd.DataFrame:
    base = shop(*CASES[1])
    rows = {
        name: [row for row in own if row["customer_id"] in CUSTOMERS[::2]]
        for name, own in base.rows.items()
    }
    rows["transactions"] += _market(base.rows["transactions"])
    return replace(base, rows=rows).build()


@pytest.mark.parametrize("name", NAMES)
def test_other_customers_change_nothing(name: str) -> None:
    """Frozen values and what is known of the market are fixed, so it holds for every feature."""
    stay = shop(*CASES[1]).spine["customer_id"].isin(CUSTOMERS[::2])
    assert_same(_half_of_the_customers()[name][stay], plain(*CASES[1])[name][stay])


@cache
def _shuffled() -> pd.DataFrame:
    base = shop(*CASES[2])
    rng = np.random.default_rng(5)
    rows = {name: [own[i] for i in rng.permutation(len(own))] for name, own in base.rows.items()}
    return replace(base, rows=rows).build()


@pytest.mark.parametrize("name", NAMES)
def test_row_order_changes_nothing(name: str) -> None:
    assert_same(_shuffled()[name], plain(*CASES[2])[name])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_THE_CALENDAR])
def test_a_customer_without_history_has_the_declared_value(name: str) -> None:
    spine = shop(*CASES[0]).spine
    values = plain(*CASES[0])[name][spine["customer_id"] == NOTHING]
    assert len(values) > 0
    none = get(name).none
    assert values.isna().all() if none is None else (values == none).all()


@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_as_declared(name: str) -> None:
    values = plain(*CASES[0])[name]
    if get(name).dtype == "text":
        assert values.dtype == object
        assert {type(v) for v in values} == {str, type(None)}
        return
    assert values.dtype == "float64"
    assert np.isfinite(values.dropna()).all()
    if get(name).dtype == "int":
        assert (values.dropna() % 1 == 0).all()


# --- the slow way ---


@cache
def slow(seed: int, zone: str) -> pd.DataFrame:
    return shop(seed, zone).slow()


@pytest.mark.parametrize(("seed", "zone"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_slow_way(name: str, seed: int, zone: str) -> None:
    assert_agrees(name, plain(seed, zone)[name], slow(seed, zone)[name], shop(seed, zone).spine)


def test_every_feature_was_seen_at_work() -> None:
    """A feature that no check saw with two values is not exercised."""
    seen = pd.concat([plain(*case) for case in CASES], ignore_index=True)
    idle = [name for name in NAMES if seen[name].nunique() < 2]
    assert idle == [], "make the random shop exercise these features"
    assert set(slow(*CASES[0]).columns) == set(NAMES), "the slow way has other features"


# --- one moment for all, and part of the features ---


@cache
def _one_moment(seed: int, zone: str) -> tuple[Shop, pd.DataFrame, pd.DataFrame]:
    """Each customer once, all at a moment that a row of the shop has."""
    base = shop(seed, zone)
    times = sorted(row["transacted_at"] for row in base.rows["transactions"])
    spine = pd.DataFrame({"customer_id": CUSTOMERS, "as_of": times[len(times) * 3 // 4]})
    single = replace(base, spine=spine)
    return single, single.build(), single.slow()


@pytest.mark.parametrize(("seed", "zone"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_one_moment_agrees_with_the_slow_way(name: str, seed: int, zone: str) -> None:
    single, found, want = _one_moment(seed, zone)
    assert_agrees(name, found[name], want[name], single.spine)


def test_values_do_not_depend_on_what_else_is_asked_for() -> None:
    """Features of other features find these, requested or not."""
    base = shop(*CASES[0])
    names = [name for name in NAMES if get(name).of == "features"]
    part = build_features(base.tables(), base.spine, names, base.config, base.frozen).frame
    for name in names:
        assert_same(part[name], plain(*CASES[0])[name])


# --- tables that are not there ---


def _lesser(less: str) -> Shop:
    """The first shop without some tables, or without what the configuration lists."""
    base = shop(*CASES[0])
    if less == "configuration":
        return replace(base, config=make_config(timezone=CASES[0][1], offers=[]))
    return replace(base, rows={n: rows for n, rows in base.rows.items() if n not in less.split()})


@cache
def _without(less: str) -> tuple[pd.DataFrame, tuple[str, ...], pd.DataFrame]:
    bare = _lesser(less)
    built = build_features(bare.tables(), bare.spine, NAMES, bare.config, bare.frozen)
    return built.frame, built.missing, bare.slow()


@pytest.mark.parametrize("less", ["transactions", "exposures", "events customers", "configuration"])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_table(name: str, less: str) -> None:
    """NULL and named where a table is needed, else as if it had no rows."""
    frame, missing, want = _without(less)
    if less != "configuration":
        needs = set(get(name).needs)
        assert (name in missing) == bool(needs & set(less.split()))
    if name in missing:
        assert frame[name].isna().all()
    else:
        assert_agrees(name, frame[name], want[name], shop(*CASES[0]).spine)


def test_without_what_the_configuration_lists() -> None:
    """No coupons, clocks or holidays: what is built on them has no value, and the rest has."""
    frame = _without("configuration")[0]
    absent = {name for name in NAMES if "offers" in get(name).needs}
    absent |= {"stage_clock_days", "holiday_next_days"} & set(NAMES)
    assert {name for name in NAMES if frame[name].isna().all()} == absent
