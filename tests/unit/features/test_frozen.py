"""Frozen values: fitted on the worked example, on nothing, and round trips."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from features.config import Config
from features.errors import DataError
from features.frozen import FrozenValues, fit_frozen
from features.tables import Tables
from tests.unit.features.conftest import make_tables
from tests.unit.features.worked_example import AS_OF


def test_worked_example(example: Tables, example_config: Config) -> None:
    frozen = fit_frozen(example, AS_OF, example_config)
    assert frozen.at == AS_OF
    assert frozen.median_gap_days == 30
    # Matured offers: A's M199 (no order), A's HALF2 (a6), B's M199 (b2).
    assert frozen.response_rate == 0.666667
    assert frozen.spend_high == 520
    assert (frozen.recency_median, frozen.frequency_median, frozen.monetary_median) == (30, 2, 280)
    assert frozen.recency_cuts == (13.333333, 43.333333)
    assert frozen.frequency_cuts == (1.333333, 2.666667)
    assert frozen.monetary_cuts == (190, 370)


def test_only_rows_strictly_before_the_reference_date(
    example: Tables, example_config: Config
) -> None:
    at_b2 = datetime(2025, 10, 23, 10, tzinfo=UTC)
    before = fit_frozen(example, at_b2, example_config)
    after = fit_frozen(example, at_b2 + timedelta(microseconds=1), example_config)
    # Seen only by the later fit: B's recency falls from 30 days to 0.
    assert before.recency_cuts == (23.333333, 30)
    assert after.recency_cuts == (13.333333, 26.666667)


def test_without_data_the_documented_defaults_hold(example: Tables, example_config: Config) -> None:
    early = datetime(2020, 1, 1, tzinfo=UTC)
    frozen = fit_frozen(example, early, example_config)
    assert replace(frozen, version="default", at=None) == FrozenValues()
    assert (frozen.median_gap_days, frozen.response_rate, frozen.spend_high) == (30, 0, None)
    only_exposures = make_tables(
        exposures=pd.DataFrame(
            {"customer_id": ["a"], "assigned_at": ["2025-01-01"], "arm": ["control"]}
        )
    )
    frozen = fit_frozen(only_exposures, AS_OF, example_config)
    assert replace(frozen, version="default", at=None) == FrozenValues()


def test_json_round_trip_and_version(example: Tables, example_config: Config) -> None:
    frozen = fit_frozen(example, AS_OF, example_config)
    assert FrozenValues.from_json(frozen.to_json()) == frozen
    assert FrozenValues.from_json(FrozenValues().to_json()) == FrozenValues()
    assert fit_frozen(example, AS_OF, example_config).version == frozen.version
    other = fit_frozen(example, AS_OF - timedelta(days=20), example_config)
    assert other.version != frozen.version
    assert frozen.version.startswith("20251231-")


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", FrozenValues().to_json()[:-3]])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"frozen values: expected the JSON that a fit wrote"):
        FrozenValues.from_json(text)
