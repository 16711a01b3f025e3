"""Labels and the product-stage clock: the worked example, every threshold, NULL."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.clock import product_stages
from features.config import Config, StageClockConfig
from features.errors import DataError
from features.frozen import FrozenValues
from features.labels import LABEL_FEATURES, LABELS, labels, responses
from features.segment_table import segment_table
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.conftest import make_tables
from tests.unit.features.test_segments import FROZEN
from tests.unit.features.worked_example import AS_OF, SEGMENTS

CALM = {
    "orders_total": 4,
    "order_days_total": 4,
    "order_days_365d": 4,
    "orders_365d": 4,
    "spend_365d": 100,
    "overdue_ratio": 0.5,
    "novelty_share_365d": 0.1,
    "discount_rate_365d": 0.1,
    "full_price_orders_365d": 2,
    "price_sensitivity_score": 0.2,
    "matured_offers_365d": 5,
    "response_rate_365d": 0.2,
}
CUTS = FrozenValues("test", response_low=0.1, response_high=0.3, monetary_cuts=(190, 370))


def label(stage: str = "growth", churn: float | None = None, **values: float) -> str:
    """The labels of one customer who is calm but for these values."""
    frame = pd.DataFrame([CALM | values], dtype=float)
    given = None if churn is None else np.array([churn])
    found = labels(frame, pd.Series([stage], dtype=object), CUTS, given)
    assert set(found.columns) == {"response", *LABELS, "labels"}
    assert [n for n in LABELS if found[n][0]] == [n for n in found["labels"][0].split(",") if n]
    return str(found["labels"][0])


def test_worked_example(example: Tables, example_config: Config) -> None:
    spine = all_customers(example, AS_OF, example_config)
    found, missing = segment_table(example, spine, example_config, FROZEN)
    assert missing == ()
    for name, want in SEGMENTS.items():
        assert [None if pd.isna(v) else v for v in found[name]] == want, name
    by_customer = dict(zip(found["customer_id"], found["labels"], strict=True))
    assert by_customer == {
        "A": "repeat_buyer",
        "B": "repeat_buyer,novelty_seeker",
        "C": "new_buyer",
        "D": "repeat_buyer,churn_warning",
        "E": "new_buyer",
        "F": "new_buyer",
        "G": "repeat_buyer",
        "H": "",
        "I": "repeat_buyer",
    }
    # A has two matured offers, B one.
    assert set(found["response"]) == {"unknown"}
    assert not found["price_sensitive"].any()
    assert not found["deal_hunter"].any()


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, "repeat_buyer"),
        ({"order_days_total": 1}, "new_buyer"),
        ({"order_days_total": 2}, "repeat_buyer"),
        ({"order_days_total": 0, "orders_total": 0}, ""),
        ({"price_sensitivity_score": 0.6}, "repeat_buyer,price_sensitive"),
        ({"price_sensitivity_score": 0.59}, "repeat_buyer"),
        ({"price_sensitivity_score": np.nan}, "repeat_buyer"),
        ({"price_sensitivity_score": 0.9, "orders_365d": 2}, "repeat_buyer"),
        (
            {"price_sensitivity_score": 0.9, "orders_365d": 3, "order_days_365d": 2},
            "repeat_buyer,price_sensitive",
        ),
        ({"novelty_share_365d": 0.5, "order_days_365d": 3}, "repeat_buyer,novelty_seeker"),
        ({"novelty_share_365d": 0.5, "order_days_365d": 2}, "repeat_buyer"),
        ({"novelty_share_365d": 0.49}, "repeat_buyer"),
        (
            {"full_price_orders_365d": 0, "discount_rate_365d": 0.25, "order_days_365d": 3},
            "repeat_buyer,deal_hunter",
        ),
        ({"full_price_orders_365d": 1, "discount_rate_365d": 0.5}, "repeat_buyer"),
        ({"full_price_orders_365d": 0, "discount_rate_365d": 0.24}, "repeat_buyer"),
        ({"full_price_orders_365d": 0, "discount_rate_365d": np.nan}, "repeat_buyer"),
        (
            {"full_price_orders_365d": 0, "discount_rate_365d": 0.5, "order_days_365d": 2},
            "repeat_buyer",
        ),
        (
            {
                "full_price_orders_365d": 0,
                "discount_rate_365d": 0.5,
                "order_days_365d": 1,
                "order_days_total": 1,
                "overdue_ratio": 1.51,
            },
            "new_buyer,deal_hunter",
        ),
        (
            {
                "full_price_orders_365d": 0,
                "discount_rate_365d": 0.5,
                "order_days_365d": 1,
                "order_days_total": 1,
                "overdue_ratio": 1.5,
            },
            "new_buyer",
        ),
    ],
)
def test_thresholds(values: dict[str, float], want: str) -> None:
    assert label(**values) == want


@pytest.mark.parametrize(
    ("stage", "spend", "churn", "warned"),
    [
        ("declining", 191, None, True),
        ("declining", 190, None, False),
        ("growth", 500, None, False),
        ("declining", 100, 0.6, True),
        ("growth", 100, 0.6, True),
        ("growth", 100, 0.59, False),
        ("growth", 100, np.nan, False),
        ("declining", 500, np.nan, True),
    ],
)
def test_churn_warning(stage: str, spend: float, churn: float | None, warned: bool) -> None:
    assert ("churn_warning" in label(stage, churn, spend_365d=spend)) is warned


@pytest.mark.parametrize(
    ("matured", "rate", "want"),
    [
        (3, 0.3, "high_responder"),
        (3, 0.1, "low_responder"),
        (3, 0.299, "mid"),
        (3, 0.101, "mid"),
        (2, 0.9, "unknown"),
        (0, np.nan, "unknown"),
        (np.nan, np.nan, "unknown"),
        (3, np.nan, "mid"),
    ],
)
def test_response(matured: float, rate: float, want: str) -> None:
    assert responses(np.array([float(matured)]), np.array([rate]), CUTS).tolist() == [want]


def test_the_cut_is_met_however_its_sixth_decimal_was_rounded() -> None:
    """1.74242 ÷ 8 lies in the middle between two numbers of 6 decimals."""
    for high in (0.217802, 0.217803):
        cuts = FrozenValues("test", response_low=0.092803, response_high=high)
        found = responses(np.full(2, 3.0), np.array([1.74242, 0.74242]) / 8, cuts)
        assert found.tolist() == ["high_responder", "low_responder"]


def test_one_shared_cut_is_neither_high_nor_low_and_no_cut_is_mid() -> None:
    shared = FrozenValues("test", response_low=0.2, response_high=0.2)
    matured, rate = np.full(3, 5.0), np.array([0.1, 0.2, 0.3])
    found = responses(matured, rate, shared)
    assert found.tolist() == ["low_responder", "mid", "high_responder"]
    assert set(responses(matured, rate, FrozenValues())) == {"mid"}


def test_the_text_names_exactly_the_flags_that_hold() -> None:
    """On many random customers, against the flags joined one by one."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({name: rng.choice([0, 0.25, 0.6, 1, 3], 400) for name in LABEL_FEATURES})
    stage = pd.Series(rng.choice(["declining", "growth"], 400), dtype=object)
    found = labels(frame, stage, CUTS)
    want = [
        ",".join(itertools.compress(LABELS, flags))
        for flags in found[list(LABELS)].to_numpy().tolist()
    ]
    assert found["labels"].tolist() == want
    assert len(set(want)) > 20


def test_without_exposures_the_response_is_unknown(example: Tables, example_config: Config) -> None:
    orders = Tables(example.con, transactions=example.transactions, exposures=None)
    spine = all_customers(orders, AS_OF, example_config)
    found, missing = segment_table(orders, spine, example_config, FROZEN)
    assert set(missing) == {"matured_offers_365d", "response_rate_365d"}
    assert set(found["response"]) == {"unknown"}


def test_without_transactions_there_are_no_segments(
    example: Tables, example_config: Config
) -> None:
    nothing = make_tables()
    spine = all_customers(example, AS_OF, example_config)
    with pytest.raises(DataError, match="transactions: expected orders"):
        segment_table(nothing, spine, example_config, FROZEN)


def test_a_lacking_feature_is_named() -> None:
    frame = pd.DataFrame([CALM], dtype=float).drop(columns="spend_365d")
    with pytest.raises(DataError, match=r"found no spend_365d\."):
        labels(frame, pd.Series(["growth"]), CUTS)


CLOCK = StageClockConfig(
    anchors={"maternity_wear": 120, "newborn_care": 270, "toddler_food": 635},
    stages={"孕期": (0, 270), "新生儿": (270, 635), "幼儿": (635, 1365)},
)


@pytest.mark.parametrize(
    ("position", "want"),
    [
        (0, "孕期"),
        (269, "孕期"),
        (270, "新生儿"),  # maternity wear, bought 150 days ago
        (634, "新生儿"),
        (635, "幼儿"),
        (1364, "幼儿"),
        (1365, "graduated"),
        (9999, "graduated"),
        (-1, None),
        (np.nan, None),
    ],
)
def test_product_stages(position: float, want: str | None) -> None:
    assert product_stages(np.array([float(position)]), CLOCK).tolist() == [want]


def test_a_gap_between_stages_is_no_stage() -> None:
    clock = StageClockConfig(anchors={"a": 0}, stages={"late": (50, 60), "early": (10, 20)})
    found = product_stages(np.array([15.0, 30, 55, 60, 5]), clock)
    assert found.tolist() == ["early", None, "late", "graduated", None]


def test_the_clock_of_a_purchase(config: Any) -> None:
    """Maternity wear bought 150 days ago stands at 120 + 150 days."""
    tables = make_tables(
        transactions=pd.DataFrame(
            {
                "customer_id": ["a", "b", "c"],
                "order_id": ["1", "2", "3"],
                "transacted_at": ["2025-08-04T01:00Z", "2025-08-05T01:00Z", "2025-08-04T01:00Z"],
                "amount": [10.0, 10.0, 10.0],
                "quantity": [1.0, 1.0, 1.0],
                "category": ["maternity_wear", "maternity_wear", "tools"],
            }
        )
    )
    shop = config(stage_clocks={"mother_baby": CLOCK.model_dump()})
    spine = all_customers(tables, pd.Timestamp("2026-01-01").to_pydatetime(), shop)
    found, _ = segment_table(tables, spine, shop, FrozenValues())
    assert found["product_stage"].tolist() == ["新生儿", "孕期", None]
