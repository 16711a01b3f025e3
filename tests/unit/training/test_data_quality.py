"""The feature profile of a training: of everybody whom it would score, not of the exposed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.drift import FeatureProfile, compare
from features.frozen import FrozenValues, fit_frozen
from features.sources import open_source
from tests.unit.training.shops import (
    config_of,
    exposure,
    line,
    random_experiment,
    wide_config,
    write,
)
from training.data_quality import feature_profile
from uplift.bundle import Money, ScoringBundle
from uplift.data import Schema
from uplift.effects import EffectModel


def bundle_of(names: list[str], given: list[str], frozen: FrozenValues) -> ScoringBundle:
    """One that reads these features, and scores nothing."""
    nothing = EffectModel(np.zeros(0))
    return ScoringBundle(
        schema=Schema((*names, *given), {}),
        offers=(),
        offered=(),
        policy="none",
        effects=nothing,
        costs=nothing,
        cost_calibration=np.zeros((0, 3)),
        response=None,
        money=Money("profit", 1.0, 0.4),
        frozen=json.loads(frozen.to_json()),
        features={"names": names, "given": given},
        info={},
    )


def test_the_profile_is_of_all_customers_as_of_the_scoring(tmp_path: Path) -> None:
    """Customer c0 ordered 30 days before 1 March, c1 31 days, ...; only three were exposed, when
    all their recencies were others."""
    first = pd.Timestamp("2026-01-30")
    orders = [
        line(f"c{i}", f"o{i}", f"{first - pd.Timedelta(days=i):%Y-%m-%d}T00:00:00", 20.0)
        for i in range(9)
    ]
    seen = [
        exposure(i, f"c{i}", arm, "2026-02-05") for i, arm in enumerate(("control", "c5", "c5"))
    ]
    config = config_of(write(tmp_path, transactions=orders, exposures=seen))
    tables = open_source(config).tables()
    frozen = fit_frozen(tables, config.as_of(), config)
    bundle = bundle_of(["recency_days"], [], frozen)
    profile = feature_profile(tables, bundle, config)
    assert profile.customers == 9
    assert profile.as_of == "2026-03-01T00:00:00Z"
    assert set(profile.features) == {"recency_days"}
    # Thirds of the recencies 30, 31, ..., 38.
    assert profile.features["recency_days"].edges == (32.0, 35.0)
    assert profile.features["recency_days"].counts == (3, 3, 3, 0)
    again = FeatureProfile.from_json(json.dumps(profile.to_json()))
    same = compare(again, pd.DataFrame({"recency_days": np.arange(30.0, 39.0)}))
    assert [(d.psi, d.p) for d in same] == [(0.0, 1.0)]


def test_of_a_wide_experiment_the_given_features(tmp_path: Path) -> None:
    folder = random_experiment(tmp_path / "wide", 300)
    given = ["x0", "x1", "x2"]
    config = wide_config(folder)
    tables = open_source(config).tables()
    profile = feature_profile(tables, bundle_of([], given, FrozenValues()), config)
    frame = pd.read_parquet(folder / "exposures.parquet")
    assert profile.customers == 300
    for name in given:
        edges = profile.features[name].edges
        assert edges == pytest.approx(
            np.quantile(frame[name], [1 / 3, 2 / 3], method="inverted_cdf")
        )
    assert {d.psi for d in compare(profile, frame[given])} == {0.0}
