"""Who is in the feature table, what the spine accepts, and features without their table."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.config import Config
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues
from features.grains import Workbench
from features.registry import CATALOGUE, COLUMNS
from features.relations import RELATIONS
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.worked_example import AS_OF

FROZEN = FrozenValues()


def test_customers_of_every_table_before_the_moment() -> None:
    at = datetime(2025, 6, 1)
    early, late = "2025-05-31T23:59:59.999999", "2025-06-01"
    tables = make_tables(
        transactions=pd.DataFrame(
            {
                "customer_id": ["t1", "t2", "t1"],
                "order_id": ["1", "2", "3"],
                "transacted_at": [early, late, early],
                "amount": [1.0, 1.0, 1.0],
            }
        ),
        exposures=pd.DataFrame(
            {
                "exposure_id": ["e1", "e2", "e3", "e4"],
                "customer_id": ["e1", "e2", "e1", "e1"],
                "assigned_at": ["2025-01-01", late, "2025-02-01", late],
                "arm": "control",
                "visits": [1.0, 2.0, 3.0, 4.0],
            }
        ),
        customers=pd.DataFrame(
            {
                "customer_id": ["d1", "d2", "d3"],
                "joined_at": [early, late, None],
                "region": ["n", "s", "w"],
            }
        ),
        events=pd.DataFrame(
            {"customer_id": ["v1", "v2"], "occurred_at": [early, late], "type": "opened"}
        ),
    )
    config = make_config(features={"given": ["region", "visits", "nowhere"]})
    found = all_customers(tables, at, config)
    assert found["customer_id"].tolist() == ["d1", "d3", "e1", "t1", "v1"]
    assert (found["as_of"] == pd.Timestamp(at)).all()
    assert found["region"].tolist()[:2] == ["n", "w"]
    # Given columns of exposures: the latest one before the moment.
    assert found["visits"].tolist()[2] == 3.0
    assert found["visits"].isna().tolist() == [True, True, False, True, True]
    built = build_features(tables, found, ["orders_total"], config, FROZEN).frame
    assert built.columns.tolist() == ["orders_total", "region", "visits"]


def test_before_the_first_transaction(example: Tables, example_config: Config) -> None:
    first = datetime(2025, 3, 7, 11, tzinfo=UTC)
    with pytest.raises(DataError, match=r"before as_of 2025-03-07T11:00:00Z.*later --as-of"):
        all_customers(example, first, example_config)
    found = all_customers(example, first + timedelta(microseconds=1), example_config)
    assert found["customer_id"].tolist() == ["A"]


@pytest.mark.parametrize("name", ["transactions", "exposures"])
def test_an_empty_source(name: str) -> None:
    tables = make_tables(**{name: pd.DataFrame({"customer_id": []}, dtype=object)})
    with pytest.raises(DataError, match=r"expected customers seen before .*, found none"):
        all_customers(tables, AS_OF, make_config())


def test_the_spine_gives_the_order_and_may_repeat(example: Tables, example_config: Config) -> None:
    earlier = AS_OF - timedelta(days=100)
    spine = pd.DataFrame(
        {
            "customer_id": ["C", "A", "A", "unknown", "A"],
            "as_of": [AS_OF, AS_OF, earlier, AS_OF, AS_OF],
        },
        index=[9, 9, 3, 2, 1],
    )
    frame = build_features(example, spine, ["orders_total"], example_config, FROZEN).frame
    assert frame.index.tolist() == [0, 1, 2, 3, 4]
    # A hundred days before, A's order a4 (2025-09-23) had not come yet.
    assert frame["orders_total"].tolist() == [1, 6, 3, 0, 6]


def test_an_empty_spine(example: Tables, example_config: Config) -> None:
    spine = pd.DataFrame({"customer_id": [], "as_of": pd.to_datetime([])})
    frame = build_features(example, spine, None, example_config, FROZEN).frame
    assert frame.shape == (0, 20)


def test_a_bad_spine_is_refused(example: Tables, example_config: Config) -> None:
    with pytest.raises(DataError, match=r"spine: .* found no as_of"):
        build_features(example, pd.DataFrame({"customer_id": ["A"]}), None, example_config, FROZEN)
    spine = pd.DataFrame({"customer_id": ["A", None], "as_of": [pd.NaT, AS_OF]})
    with pytest.raises(DataError, match=r"2 rows without \(for example 0, 1\)"):
        build_features(example, spine, None, example_config, FROZEN)
    good = pd.DataFrame({"customer_id": ["A"], "as_of": [AS_OF]})
    with pytest.raises(ConfigError, match="'nothing'"):
        build_features(example, good, ["nothing"], example_config, FROZEN)


def test_without_their_table_features_are_null_and_named(
    example: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(CATALOGUE)
    spine = pd.DataFrame({"customer_id": ["A", "B"], "as_of": AS_OF})
    bare = Tables(example.con, example.transactions, None)
    with caplog.at_level(logging.INFO, logger="features"):
        built = build_features(bare, spine, names, make_config(offers=[]), FROZEN)
    want = {n for n, f in CATALOGUE.items() if not set(f.needs) <= {"transactions", *COLUMNS}}
    assert want >= {"kind_favourite_365d", "response_rate_365d", "offers_28d", "region"}
    assert set(built.missing) == want
    assert built.frame[list(want)].isna().all(axis=None)
    present = [n for n, f in CATALOGUE.items() if f.core and n not in want]
    assert built.frame[present].notna().all(axis=None)
    assert len(caplog.records) == 1
    assert "offers_28d" in caplog.records[0].getMessage()

    only = Tables(example.con, None, example.exposures)
    built = build_features(only, spine, names, make_config(), FROZEN)
    want = {n for n, f in CATALOGUE.items() if set(f.needs) <= {"exposures", "offers"}}
    assert set(names) - set(built.missing) == want
    assert built.frame["offers_28d"].tolist() == [2, 1]
    assert built.frame["redemption_rate_365d"].isna().all(), "nothing tells of redemptions"


def test_nothing_is_left_behind_in_the_connection(
    example: Tables, example_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> list[str]:
        rows = example.con.raw_sql("SELECT table_name FROM duckdb_tables()").fetchall()
        return [name for (name,) in rows if name.startswith("_features")]

    spine = pd.DataFrame({"customer_id": ["A"], "as_of": [AS_OF]})
    example = replace(example, prepared={})
    before = left()
    build_features(example, spine, None, example_config, FROZEN)
    prepared = left()
    # The lines of all customers, and their numbers, serve further builds.
    assert len(prepared) == len(before) + 2

    def breaks(work: Workbench) -> None:
        work.order_days  # noqa: B018
        assert len(left()) > len(prepared)
        raise ArithmeticError

    monkeypatch.setitem(RELATIONS, "orders", breaks)
    with pytest.raises(ArithmeticError):
        build_features(example, spine, ["orders_total"], example_config, FROZEN)
    assert left() == prepared


def test_millionths_are_summed_exactly() -> None:
    """Two hundred lines of ten cents are twenty, to the last bit, in any order."""
    rng = np.random.default_rng(3)
    amounts = np.concatenate([np.full(200, 0.1), [1e8, -1e8, 3e13]])
    for _ in range(3):
        lines = pd.DataFrame(
            {
                "customer_id": ["a"] * 202 + ["b"],
                "order_id": "o",
                "transacted_at": "2025-01-01",
                "amount": amounts,
            }
        ).iloc[rng.permutation(203)]
        tables = make_tables(transactions=lines)
        spine = pd.DataFrame({"customer_id": ["a", "b"], "as_of": AS_OF})
        frame = build_features(tables, spine, ["spend_total"], make_config(), FROZEN).frame
        assert frame["spend_total"].tolist() == [20.0, 3e13]
