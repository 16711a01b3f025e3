"""Segments: the worked example, the printed tier boundaries, and one tier for everyone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.config import TIERS, Config, SegmentsConfig
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues
from features.segments import (
    RFM_CLASSES,
    SEGMENT_FEATURES,
    STAGES,
    TIER_DETAILS,
    rfm_classes,
    rfm_warnings,
    segments,
    stages,
    tiers,
)
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.conftest import make_config
from tests.unit.features.worked_example import AS_OF, SEGMENTS

RULES = SegmentsConfig()
FROZEN = FrozenValues(
    "fixture",
    median_gap_days=30,
    response_rate=0.1,
    spend_high=520,
    recency_median=30,
    frequency_median=2,
    monetary_median=280,
    recency_cuts=(13.333333, 43.333333),
    frequency_cuts=(1.333333, 2.666667),
    monetary_cuts=(190, 370),
)


@pytest.fixture(scope="module")
def frame(example: Tables, example_config: Config) -> pd.DataFrame:
    spine = all_customers(example, AS_OF, example_config)
    return build_features(example, spine, SEGMENT_FEATURES, example_config, FROZEN).frame


@pytest.mark.parametrize("name", SEGMENTS)
def test_worked_example(frame: pd.DataFrame, name: str) -> None:
    found = segments(frame, FROZEN, RULES)[name]
    assert [None if pd.isna(v) else v for v in found] == SEGMENTS[name]


def test_orders_may_count_instead_of_order_days(frame: pd.DataFrame) -> None:
    by_order = segments(frame, FROZEN, SegmentsConfig(frequency_unit="order"))
    assert by_order["tier"][6] == "champion"
    assert by_order["tier_detail"][6] is None


@pytest.mark.parametrize(
    ("r", "n", "t", "high", "tier", "detail"),
    [
        (30, 6, 200, True, "champion", None),
        (31, 6, 200, True, "regular", "champion_cooling"),
        (30, 6, 200, False, "regular", "frequent_low_value"),
        (5, 6, 20, True, "champion", None),
        (5, 6, 20, False, "new", None),
        (5, 3, 20, False, "new", None),
        (30, 1, 30, False, "new", None),
        (31, 1, 31, False, "regular", "single_cooling"),
        (5, 5, 60, True, "regular", "five_orders"),
        (89, 4, 200, False, "potential", None),
        (90, 4, 200, False, "sleeping", None),
        (180, 9, 400, True, "sleeping", None),
        (181, 9, 400, True, "lost", None),
    ],
)
def test_tier_boundaries(
    r: float, n: float, t: float, high: bool, tier: str, detail: str | None
) -> None:
    numbers = [np.array([float(v)]) for v in (r, n, t)]
    found = tiers(*numbers, np.array([high]), np.array([True]))
    assert (found[0][0], found[1][0]) == (tier, detail)


def test_every_customer_has_one_tier_and_regulars_a_detail() -> None:
    """On the whole grid of possible states the details fill `regular` without a gap."""
    grid = [
        (r, n, t, high)
        for r, n, t, high in itertools.product(
            range(200), range(1, 9), (0, 29, 30, 31, 89, 90, 200, 400), (False, True)
        )
        if t >= r and (n > 1 or t == r) and (t > r or n == 1)
    ]
    r, n, t = (np.array([g[i] for g in grid], dtype=float) for i in range(3))
    high = np.array([g[3] for g in grid])
    tier, detail = tiers(r, n, t, high, np.ones(len(grid), dtype=bool))
    assert set(tier) == set(TIERS) - {"prospect"}
    assert set(detail[tier == "regular"]) == set(TIER_DETAILS)
    assert set(detail[tier != "regular"]) == {None}
    nobody = tiers(r, n, t, high, np.zeros(len(grid), dtype=bool))[0]
    assert set(nobody) == {"prospect"}


@pytest.mark.parametrize(
    ("r", "n", "o", "top", "stage"),
    [
        (366, 9, 0.5, True, "lost"),
        (365, 9, 1.5, True, "mature"),
        (30, 9, 3.1, True, "lost"),
        (29, 9, 3.1, True, "declining"),
        (14, 9, 1.6, True, "declining"),
        (13, 9, 1.6, True, "mature"),
        (13, 9, 1.6, False, "growth"),
        (13, 5, 0.2, True, "growth"),
        (13, 1, 0.2, True, "novice"),
        (np.nan, 0, np.nan, False, "novice"),
    ],
)
def test_stage_boundaries(r: float, n: float, o: float, top: bool, stage: str) -> None:
    assert stage in STAGES
    found = stages(*(np.array([float(v)]) for v in (r, n, o)), np.array([top]))
    assert found[0] == stage


@pytest.mark.parametrize(
    ("r", "f", "m", "rfm"),
    [
        (10, 5, 900, "HHH"),
        (10, 2, 900, "HLH"),
        (90, 5, 900, "LHH"),
        (90, 2, 900, "LLH"),
        (10, 5, 100, "HHL"),
        (10, 2, 100, "HLL"),
        (90, 5, 100, "LHL"),
        (90, 2, 100, "LLL"),
        (60, 3, 500, "LLL"),
    ],
)
def test_rfm_examples_with_fixed_cuts(r: float, f: float, m: float, rfm: str) -> None:
    frame = pd.DataFrame(1.0, index=[0], columns=list(SEGMENT_FEATURES))
    frame["recency_days"], frame["order_days_365d"], frame["spend_365d"] = float(r), float(f), m
    frozen = FrozenValues("fixed", recency_median=60, frequency_median=3, monetary_median=500)
    assert segments(frame, frozen, RULES)["rfm_class"].tolist() == [rfm]
    assert rfm in RFM_CLASSES


def test_fixed_cuts_of_the_configuration_replace_the_medians(frame: pd.DataFrame) -> None:
    cuts = {"recency": 15, "frequency": 5, "monetary": 600}
    rules = SegmentsConfig.model_validate({"rfm_method": "fixed", "rfm_cuts": cuts})
    found = segments(frame, FROZEN, rules)
    # A (10, 6, 1350), B (40, 3, 310), G (20, 5, 600): equality is low.
    assert found["rfm_class"][[0, 1, 6]].tolist() == ["HHH", "LLL", "LLL"]
    medians = segments(frame, FROZEN, RULES)
    pd.testing.assert_frame_equal(
        found.drop(columns="rfm_class"), medians.drop(columns="rfm_class")
    )


def test_five_levels_change_the_scores_and_nothing_else(frame: pd.DataFrame) -> None:
    """The quintiles of the eight buyers with an order in the year, worked out by hand."""
    frozen = replace(
        FROZEN,
        recency_quintiles=(8, 16, 30, 80),
        frequency_quintiles=(1, 1, 2, 5),
        monetary_quintiles=(68, 160, 310, 400),
    )
    found = segments(frame, frozen, SegmentsConfig(score_levels=5))
    scores = {n: found[n].dropna().tolist() for n in ("r_score", "f_score", "m_score")}
    assert scores["r_score"] == [4, 2, 4, 1, 1, 2, 3, 5]
    assert scores["f_score"] == [5, 4, 1, 3, 1, 1, 4, 3]
    assert scores["m_score"] == [5, 3, 1, 3, 4, 1, 5, 2]
    three = segments(frame, frozen, RULES)
    pd.testing.assert_frame_equal(found.drop(columns=[*scores]), three.drop(columns=[*scores]))


def test_a_lopsided_axis_is_named() -> None:
    """Of 100 buyers 4 are recent, 5 frequent and 96 big spenders; prospects do not count."""
    letters = [("H" if i < 4 else "L") + ("H" if i < 5 else "L") for i in range(100)]
    classes = [two + ("H" if i < 96 else "L") for i, two in enumerate(letters)]
    found = pd.DataFrame({"rfm_class": [*classes, *["prospect"] * 900]})
    warnings = rfm_warnings(found)
    assert [w.split(":")[0] for w in warnings] == ["RFM axis recency", "RFM axis monetary"]
    assert "4.0% of buyers are high, 96.0% low" in warnings[0]
    assert rfm_warnings(found[found["rfm_class"] == "prospect"]) == []


@pytest.mark.parametrize(
    "order",
    [
        [*TIERS[:-1]],
        [*TIERS, "vip"],
        ["lost", "prospect", *TIERS[2:]],
        [*TIERS[:-2], "regular", "potential"],
        [*TIERS[:-2], "lost", "regular"],
    ],
)
def test_a_precedence_without_every_tier_once_is_refused(order: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"segments\.tier_order: expected prospect, then lost"):
        make_config(segments={"tier_order": order})


def test_rfm_class_of_a_prospect() -> None:
    yes, no = np.array([True]), np.array([False])
    assert rfm_classes(yes, yes, yes, no).tolist() == ["prospect"]


def test_unfitted_cuts_let_nobody_pass(frame: pd.DataFrame) -> None:
    found = segments(frame, FrozenValues(), RULES)
    assert "champion" not in set(found["tier"])
    assert set(found["rfm_class"]) == {"LLL", "prospect"}
    assert set(found["m_score"].dropna()) == {1.0}


def test_a_lacking_feature_is_named() -> None:
    lacking = pd.DataFrame(columns=[c for c in SEGMENT_FEATURES if c != "spend_total"])
    with pytest.raises(DataError, match=r"found no spend_total\."):
        segments(lacking, FROZEN, RULES)


def test_no_rows() -> None:
    found = segments(pd.DataFrame(columns=list(SEGMENT_FEATURES), dtype=float), FROZEN, RULES)
    assert len(found) == 0
