"""Every engine says the same: the same customers, the same numbers.

What is expected is what DuckDB says on one thread, which the other tests hold to the slow way.
"""

from __future__ import annotations

import pandas as pd
import pytest

from features.audience import matches
from features.frozen import fit_frozen
from features.labels import labels
from features.registry import get
from features.segment_table import segment_table
from features.segments import segments
from tests.contracts.test_features import NAMES
from tests.engines.conftest import OnEngine, assert_equal, expected, shop

ZONES = ["Europe/Berlin", "UTC", "America/New_York"]
ZONE = ZONES[0]
FURTHER = [pytest.param(zone, marks=pytest.mark.slow) for zone in ZONES[1:]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_features_at_many_moments(engine: OnEngine, zone: str, name: str) -> None:
    found, want = engine.catalogue(zone)[name], expected("catalogue", zone)[name]
    if name in engine.gaps:
        pytest.xfail(engine.gaps[name])
    assert_equal(found, want, exact=get(name).dtype == "int")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zone", ZONES)
def test_features_at_one_moment(engine: OnEngine, zone: str, name: str) -> None:
    found, want = engine.one_moment(zone)[name], expected("one moment", zone)[name]
    if name in engine.gaps:
        pytest.xfail(engine.gaps[name])
    assert_equal(found, want, exact=get(name).dtype == "int")


def test_gaps_are_of_known_features(engine: OnEngine) -> None:
    assert set(engine.gaps) <= set(NAMES)


@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_segments_and_labels(engine: OnEngine, zone: str) -> None:
    found = of_features(engine.catalogue(zone), zone)
    want = of_features(expected("catalogue", zone), zone)
    pd.testing.assert_frame_equal(found, want, check_exact=True)
    assert found["tier"].nunique() > 3


def of_features(frame: pd.DataFrame, zone: str) -> pd.DataFrame:
    frozen = shop(zone).frozen
    found = segments(frame, frozen, shop(zone).config.segments)
    return pd.concat([found, labels(frame, found["lifecycle_stage"], frozen)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_the_table_of_segments(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    found, missing = segment_table(engine.tables(zone), own.moment, engine.config(zone), own.frozen)
    assert missing == ()
    pd.testing.assert_frame_equal(found, expected("segments", zone), check_exact=True)


@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_filters(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    tables, config = engine.tables(zone), engine.config(zone)
    found = matches(tables, own.moment, own.filters, config, own.frozen).met
    pd.testing.assert_frame_equal(found, expected("filters", zone))
    # Equality means something only where filters tell customers apart.
    assert found.mean().between(0.01, 0.99).sum() >= 15


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_frozen_values(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    assert own.frozen.at is not None
    found = fit_frozen(engine.tables(zone), own.frozen.at, engine.config(zone))
    assert found == own.frozen
