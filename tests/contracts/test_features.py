"""What every registered feature owes: the same checks over the whole catalogue.

A new feature is checked by standing in the catalogue; the last test names one that no check saw
with a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.config import Config
from features.frozen import FrozenValues
from features.registry import CATALOGUE
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.oracle import Row, features_of
from tests.unit.features.random_shop import (
    CUSTOMERS,
    NOTHING,
    make_exposures,
    make_lines,
    make_spine,
)

FROZEN = FrozenValues("test", median_gap_days=21.5, response_rate=0.125)
CASES = [(1, "UTC"), (2, "Europe/Berlin"), (3, "America/New_York")]
OVERRIDES = {"2025-02-01": False, "2025-02-03": True, "2023-10-29": False}


@dataclass(frozen=True)
class Shop:
    lines: list[Row]
    exposures: list[Row]
    spine: pd.DataFrame
    config: Config

    def build(
        self, lines: list[Row] | None = None, exposures: list[Row] | None = None
    ) -> pd.DataFrame:
        tables = make_tables(
            transactions=pd.DataFrame(self.lines if lines is None else lines, dtype=object),
            exposures=pd.DataFrame(
                self.exposures if exposures is None else exposures, dtype=object
            ),
        )
        built = build_features(tables, self.spine, list(CATALOGUE), self.config, FROZEN)
        assert built.missing == ()
        return built.frame


@cache
def shop(seed: int, zone: str) -> Shop:
    rng = np.random.default_rng(seed)
    lines = make_lines(rng, zone)
    exposures = make_exposures(rng, lines)
    spine = make_spine(rng, lines, exposures, zone)
    config = make_config(timezone=zone, features={"weekend_overrides": OVERRIDES})
    return Shop(lines, exposures, spine, config)


@cache
def plain(seed: int, zone: str) -> pd.DataFrame:
    return shop(seed, zone).build()


def same(found: pd.Series, want: pd.Series) -> None:
    """Texts and numbers exactly; NULL equals NULL."""
    pd.testing.assert_series_equal(found, want, check_exact=True)


# --- the future, others, and order: each variation is built once, each feature checked in it ---


@cache
def _two_futures() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each customer at a moment of its own: with its own future, and with another."""
    base = shop(*CASES[0])
    rng = np.random.default_rng(99)
    spine = base.spine.drop_duplicates("customer_id", ignore_index=True)
    lines, exposures = [], []
    for customer, moment in spine.itertuples(index=False):
        at = moment.to_pydatetime()
        own = [r for r in base.lines if r["customer_id"] == customer and r["transacted_at"] < at]
        lines += own
        exposures += [
            e for e in base.exposures if e["customer_id"] == customer and e["assigned_at"] < at
        ]
        order = own[0]["order_id"] if own else "new"
        for when in (at, at + timedelta(microseconds=1), at + timedelta(days=3)):
            later = make_lines(rng, "UTC")[0] | {"customer_id": customer, "transacted_at": when}
            back = {"order_id": order, "amount": -999.0, "quantity": -1.0}
            lines += [later, later | {"order_id": order}, later | back]
            offer = {"customer_id": customer, "assigned_at": when, "arm": "M199", "variant": None}
            exposures.append(base.exposures[0] | offer)
    other = Shop(lines, exposures, spine, base.config).build()
    return Shop(base.lines, base.exposures, spine, base.config).build(), other


@pytest.mark.parametrize("name", CATALOGUE)
def test_rows_at_or_after_the_moment_change_nothing(name: str) -> None:
    one, other = _two_futures()
    same(one[name], other[name])


@cache
def _half_of_the_customers() -> pd.DataFrame:
    base = shop(*CASES[1])
    return base.build(
        [r for r in base.lines if r["customer_id"] in CUSTOMERS[::2]],
        [e for e in base.exposures if e["customer_id"] in CUSTOMERS[::2]],
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_other_customers_change_nothing(name: str) -> None:
    """Frozen values are fixed, so this holds for population features too."""
    stay = shop(*CASES[1]).spine["customer_id"].isin(CUSTOMERS[::2])
    same(_half_of_the_customers()[name][stay], plain(*CASES[1])[name][stay])


@cache
def _shuffled() -> pd.DataFrame:
    base = shop(*CASES[2])
    rng = np.random.default_rng(5)
    return base.build(
        [base.lines[i] for i in rng.permutation(len(base.lines))],
        [base.exposures[i] for i in rng.permutation(len(base.exposures))],
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_row_order_changes_nothing(name: str) -> None:
    same(_shuffled()[name], plain(*CASES[2])[name])


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_customer_without_history_has_the_declared_value(name: str) -> None:
    spine = shop(*CASES[0]).spine
    values = plain(*CASES[0])[name][spine["customer_id"] == NOTHING]
    assert len(values) > 0
    none = CATALOGUE[name].none
    assert values.isna().all() if none is None else (values == none).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_dtype_is_as_declared(name: str) -> None:
    values = plain(*CASES[0])[name]
    if CATALOGUE[name].dtype == "text":
        assert values.dtype == object
        assert {type(v) for v in values} == {str, type(None)}
        return
    assert values.dtype == "float64"
    assert np.isfinite(values.dropna()).all()
    if CATALOGUE[name].dtype == "int":
        assert (values.dropna() % 1 == 0).all()


# --- the slow way ---


@cache
def slow(seed: int, zone: str) -> pd.DataFrame:
    base = shop(seed, zone)
    kinds = {offer.coupon_id: offer.kind for offer in base.config.offers}
    rows = [
        features_of(
            [r for r in base.lines if r["customer_id"] == customer],
            [e for e in base.exposures if e["customer_id"] == customer],
            as_of.to_pydatetime(),
            zone=zone,
            kinds=kinds,
            median_gap=FROZEN.median_gap_days,
            response_rate=FROZEN.response_rate,
            weekend_overrides=OVERRIDES,
        )
        for customer, as_of in base.spine.itertuples(index=False)
    ]
    return pd.DataFrame(rows, dtype=object)


@pytest.mark.parametrize(("seed", "zone"), CASES)
@pytest.mark.parametrize("name", CATALOGUE)
def test_agrees_with_the_slow_way(name: str, seed: int, zone: str) -> None:
    found, want = plain(seed, zone)[name], slow(seed, zone)[name]
    where = shop(seed, zone).spine.assign(found=found, want=want)
    if CATALOGUE[name].dtype == "text":
        wrong = where[[a != b for a, b in zip(found, want, strict=True)]]
    else:
        numbers = np.array([math.nan if v is None else v for v in want], dtype=float)
        wrong = where[~np.isclose(found, numbers, rtol=1e-9, atol=1e-9, equal_nan=True)]
    assert wrong.empty, wrong.to_string()


def test_every_feature_was_seen_at_work() -> None:
    """A feature that no check saw with two values is not exercised."""
    seen = pd.concat([plain(*case) for case in CASES], ignore_index=True)
    idle = [name for name in CATALOGUE if seen[name].nunique() < 2]
    assert idle == [], "make the random shop exercise these features"
    assert set(slow(*CASES[0]).columns) == set(CATALOGUE), "the slow way lacks features"
