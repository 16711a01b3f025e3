"""The slow way of the features is itself held to the worked example and to its own ground."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from tests.unit.features.oracle import features_of
from tests.unit.features.oracle_history import (
    Row,
    Settings,
    favourite,
    launches_of,
    median,
    reference_prices,
)
from tests.unit.features.worked_example import (
    AS_OF,
    EXPECTED,
    EXPECTED_TEXT,
    EXPOSURES,
    OFFERS,
    TRANSACTIONS,
    ZONE,
)

NOW = AS_OF.replace(tzinfo=None)
# What the worked example has no table for.
ELSEWHERE = {
    *("click_rate_90d", "unsubscribes_365d", "unopened_streak", "joined_days", "stage_clock_days"),
    *("region", "gender", "birthday_distance_months", "holiday_next_days"),
}


def _read(text: str, time: str) -> list[Row]:
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        values: Row = {"variant": None} | {key: value or None for key, value in row.items()}
        values[time] = datetime.fromisoformat(row[time].removesuffix("Z"))
        rows.append(
            values
            | {key: float(row[key]) for key in ("quantity", "amount", "discount") if key in row}
        )
    return rows


@cache
def example() -> dict[str, dict[str, Any]]:
    """Customer -> features."""
    lines, exposures = _read(TRANSACTIONS, "transacted_at"), _read(EXPOSURES, "assigned_at")
    settings = Settings(
        zone=ZONE,
        offers={str(offer["coupon_id"]): {"valid_days": 14} | offer for offer in OFFERS},
        median_gap=30,
        response_rate=0.1,
        prices=reference_prices(lines, NOW),
        launches=launches_of(lines),
        data_start=min(row["transacted_at"] for row in lines),
        online_channels=("app",),
        mobile_payments=("wechat",),
    )
    return {
        customer: features_of(
            [row for row in lines if row["customer_id"] == customer],
            [row for row in exposures if row["customer_id"] == customer],
            *([], None, NOW, settings),
        )
        for customer in "ABCDEFGHI"
    }


def test_there_are_67_features_and_the_example_has_all_it_can() -> None:
    names = set(example()["A"]) - {"coupon_expires_days"}  # of trigger rules, not of the catalogue
    assert len(names) == 67
    assert names - ELSEWHERE == EXPECTED.keys() | EXPECTED_TEXT.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_worked_example_numbers(name: str) -> None:
    for customer, want in zip("ABCDEFGHI", EXPECTED[name], strict=True):
        found = example()[customer][name]
        assert found == (want if want is None else pytest.approx(want, abs=5e-5)), customer


@pytest.mark.parametrize("name", EXPECTED_TEXT)
def test_worked_example_texts(name: str) -> None:
    assert [example()[customer][name] for customer in "ABCDEFGHI"] == EXPECTED_TEXT[name]


def test_median_and_favourite() -> None:
    assert median([3, 1, 2]) == 2
    assert median([Fraction(1), 4, 2, 9]) == 3
    assert median([]) is None
    start = datetime(2025, 1, 1)
    at = [start + timedelta(days=day) for day in range(4)]
    assert favourite([(at[0], {"b"}), (at[1], {"b"}), (at[2], {"a"})]) == "b"
    assert favourite([(at[0], {"a"}), (at[1], {"b"})]) == "b"
    assert favourite([(at[0], {"b", "a"}), (at[1], set())]) == "a"
    assert favourite([]) is None


def stage_clock(**bought: int) -> Any:
    """Position after purchases of categories so many days ago, by the rules' clock."""
    lines = [
        {
            **dict.fromkeys(("product_id", "channel", "payment_method", "coupon_id", "quantity")),
            **{"order_id": category, "category": category, "amount": 1.0, "discount": 0.0},
            "transacted_at": NOW - timedelta(days=days),
        }
        for category, days in bought.items()
    ]
    anchors = {"maternity_wear": 120, "newborn_care": 270, "toddler_food": 635}
    found = features_of(lines, [], [], None, NOW, Settings(anchors=anchors))
    return found["stage_clock_days"]


def test_the_stage_clock_of_the_rules() -> None:
    assert stage_clock(maternity_wear=150) == 270
    assert stage_clock(maternity_wear=150, newborn_care=150) == 420  # tie: the larger offset
    assert stage_clock(newborn_care=151, maternity_wear=150) == 270  # the latest, not the largest
    assert stage_clock(toddler_food=2000) == 2635  # past the last stage
    assert stage_clock(books=1) is None
