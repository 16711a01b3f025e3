"""Frozen values: fitted on the worked example, on nothing, and round trips."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from features.config import Config
from features.errors import DataError
from features.frozen import FrozenValues, fit_frozen
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.worked_example import AS_OF, EXPECTED, ZONE


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


def test_quintiles_and_the_quantile_of_high_spend(example: Tables, example_config: Config) -> None:
    """Of A to I but H, by numpy over the rules' own values; spend sorted is 59 to 1350."""
    frozen = fit_frozen(example, AS_OF, example_config)
    for axis, name in (
        ("recency", "recency_days"),
        ("frequency", "order_days_365d"),
        ("monetary", "spend_365d"),
    ):
        values = [v for v, n in zip(EXPECTED[name], EXPECTED["order_days_365d"], strict=True) if n]
        want = np.quantile(np.array(values, dtype=float), [0.2, 0.4, 0.6, 0.8])
        assert getattr(frozen, f"{axis}_quintiles") == pytest.approx(want, abs=1e-6)
    assert frozen.score_cuts(5)[1] == frozen.frequency_quintiles
    assert frozen.score_cuts(3)[1] == frozen.frequency_cuts
    half = make_config(timezone=ZONE, segments={"high_spend_quantile": 0.5})
    assert fit_frozen(example, AS_OF, half).spend_high == 280
    # Nobody has three matured offers.
    assert (frozen.response_low, frozen.response_high) == (None, None)


def test_response_cuts() -> None:
    """Eleven customers with 3 or 4 matured offers and one with 2, who does not count."""
    offers, orders = [], []
    responded = [0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 4]
    for i, answers in enumerate([*responded, 2]):
        given = 2 if i == 11 else 4 if answers == 4 else 3
        for k in range(given):
            day = datetime(2025, 2 + 2 * k, 1)
            offers.append({"customer_id": f"c{i}", "assigned_at": day, "arm": "M199"})
            if k < answers:
                at = day + timedelta(days=13)
                orders.append({"customer_id": f"c{i}", "order_id": f"{i}-{k}", "transacted_at": at})
    # Open, in control, too old, a reminder: none of these has an answer to count.
    for day, arm, variant in (
        (datetime(2025, 12, 25), "M199", None),
        (datetime(2025, 6, 1), "control", None),
        (datetime(2024, 6, 1), "M199", None),
        (datetime(2025, 6, 5), "M199", "reminder"),
    ):
        row = {"customer_id": "c11", "assigned_at": day, "arm": arm, "variant": variant}
        offers.append(row)
    tables = make_tables(
        transactions=pd.DataFrame(orders).assign(amount=10.0, quantity=1.0),
        exposures=pd.DataFrame(offers),
    )
    frozen = fit_frozen(tables, datetime(2026, 1, 1, tzinfo=UTC), make_config())
    p = 16 / 36
    assert frozen.response_rate == round(p, 6)
    matured = np.array([3] * 10 + [4])
    rates = (np.array(responded) + 5 * p) / (matured + 5)
    want = np.quantile(rates, [0.4, 0.8])
    assert (frozen.response_low, frozen.response_high) == pytest.approx(tuple(want), abs=1e-6)


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
