"""Values of features: the worked example, and the rules at their edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from features.build import _parts, build_features
from features.config import Config
from features.frozen import FrozenValues, fit_frozen
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
