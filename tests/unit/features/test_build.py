"""Values of features: the worked example, and the rules at their edges."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

import pandas as pd
import pytest

from features.build import _parts, build_features
from features.config import Config
from features.frozen import FrozenValues, fit_frozen
from features.lines import lines_of
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.worked_example import AS_OF, EXPECTED, EXPECTED_TEXT

FROZEN = FrozenValues("fixture", median_gap_days=30.0, response_rate=0.10)


@pytest.fixture(scope="module")
def built(example: Tables, example_config: Config) -> pd.DataFrame:
    spine = all_customers(example, AS_OF, example_config)
    assert spine["customer_id"].tolist() == list("ABCDEFGHI")
    names = [*EXPECTED, *EXPECTED_TEXT]
    # Reference prices are those of the example itself.
    everything = example_config.model_copy(
        update={"features": example_config.features.model_copy(update={"set": "all"})}
    )
    prices = fit_frozen(example, AS_OF, everything).prices
    frozen = replace(FROZEN, prices=prices)
    result = build_features(example, spine, names, example_config, frozen)
    assert result.missing == ()
    assert list(result.frame.columns) == names
    return result.frame


@pytest.mark.parametrize("name", EXPECTED)
def test_worked_example_numbers(built: pd.DataFrame, name: str) -> None:
    want = [math.nan if v is None else v for v in EXPECTED[name]]
    assert built[name].dtype == "float64"
    assert built[name].tolist() == pytest.approx(want, abs=5e-5, nan_ok=True)


@pytest.mark.parametrize("name", EXPECTED_TEXT)
def test_worked_example_texts(built: pd.DataFrame, name: str) -> None:
    assert built[name].tolist() == EXPECTED_TEXT[name]


@pytest.mark.parametrize("lines", [2, 7])
def test_customers_in_several_passes_over_the_lines(
    example: Tables, example_config: Config, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    spine = all_customers(example, AS_OF, example_config)
    later = spine.assign(as_of=spine["as_of"] + pd.Timedelta(days=3))
    both = pd.concat([spine, later], ignore_index=True)
    names = ["order_days_total", "spend_365d", "overdue_ratio", "kind_favourite_365d"]
    whole = build_features(example, both, names, example_config, FROZEN).frame
    monkeypatch.setattr("features.build.PART_LINES", lines)
    assert len(_parts(example, both)) > 3
    parts = build_features(example, both, names, example_config, FROZEN).frame
    pd.testing.assert_frame_equal(parts, whole, check_exact=True)


def test_a_customers_row_does_not_depend_on_who_else_is_asked_for(
    example: Tables, example_config: Config
) -> None:
    """Everybody, a run of them, some with gaps, another order, one who is unknown: lines are found
    in different ways."""
    everybody = all_customers(example, AS_OF, example_config)
    names = ["orders_365d", "spend_365d", "order_days_total", "category_favourite_365d"]
    whole = build_features(example, everybody, names, example_config, FROZEN).frame
    whole.index = pd.Index(everybody["customer_id"])
    for ids in ("CDEFG", "AI", "IHGFEDCBA", "AZ"):
        spine = pd.DataFrame({"customer_id": list(ids), "as_of": everybody["as_of"].iloc[0]})
        found = build_features(example, spine, names, example_config, FROZEN).frame
        found.index = pd.Index(list(ids))
        known = [name for name in ids if name != "Z"]
        pd.testing.assert_frame_equal(
            found.loc[known], whole.loc[known], check_exact=True, check_names=False
        )
        if "Z" in ids:
            assert found.loc["Z", "orders_365d"] == 0


def test_parts_are_customers_whose_ids_follow_each_other(
    example: Tables, example_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list("HCAGBIDEF")
    spine = pd.DataFrame({"customer_id": ids * 2, "as_of": AS_OF})
    monkeypatch.setattr("features.build.PART_LINES", 20)
    parts = _parts(example, spine)
    assert len(parts) > 2
    assert sorted(row for rows in parts for row in rows) == list(range(len(spine)))
    own = [sorted({spine["customer_id"][row] for row in rows}) for rows in parts]
    assert [name for part in own for name in part] == sorted(ids)

    in_order = spine.iloc[:9].sort_values("customer_id")
    monkeypatch.setattr("features.build.PART_LINES", 10)
    parts = _parts(example, in_order)
    assert len(parts) > 1
    assert [row for rows in parts for row in rows] == list(range(9))
    # Nobody is no part, however many lines others have.
    assert [rows.tolist() for rows in _parts(example, in_order.iloc[:1])] == [[0]]


def test_lines_lie_in_the_order_of_the_ids(example: Tables, example_config: Config) -> None:
    offsets = [(datetime(2020, 1, 1), 0)]
    lines = lines_of(replace(example, prepared={}), example_config, offsets)
    codes = lines.codes.to_pyarrow().sort_by("customer").to_pydict()
    assert codes["customer"] == list(range(lines.customers))
    assert codes["customer_id"] == sorted(codes["customer_id"])
    bounds = lines.lines.agg(a=lines.lines.customer.min(), b=lines.lines.customer.max())
    assert bounds.to_pyarrow().to_pylist() == [{"a": 0, "b": lines.customers - 1}]
