"""Every engine says the same: the same customers, the same numbers.

What is expected is what DuckDB says on one thread, which the other tests hold to the slow way.
"""

from __future__ import annotations

import pandas as pd
import pytest

from features.audience import matches
from features.frozen import fit_frozen
from features.registry import get
from features.segment_table import segment_table
from tests.contracts.test_features import NAMES
from tests.engines.conftest import OnEngine, assert_equal, expected, shop

ZONE = "Europe/Berlin"
FURTHER = [pytest.param(zone, marks=pytest.mark.slow) for zone in ("UTC", "America/New_York")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_features_at_many_moments(engine: OnEngine, zone: str, name: str) -> None:
    found, want = engine.catalogue(zone)[name], expected("catalogue", zone)[name]
    if name in engine.gaps:
        pytest.xfail(engine.gaps[name])
    assert_equal(found, want, exact=get(name).dtype == "int")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_features_at_one_moment(engine: OnEngine, zone: str, name: str) -> None:
    found, want = engine.one_moment(zone)[name], expected("one moment", zone)[name]
    if name in engine.gaps:
        pytest.xfail(engine.gaps[name])
    assert_equal(found, want, exact=get(name).dtype == "int")


def test_gaps_are_of_known_features(engine: OnEngine) -> None:
    assert set(engine.gaps) <= set(NAMES)


@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_segments_and_labels(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    found, missing = segment_table(engine.tables(zone), own.moment, engine.config(zone), own.frozen)
    assert missing == ()
    pd.testing.assert_frame_equal(found, expected("segments", zone), check_exact=True)
    assert found["tier"].nunique() > 3


@pytest.mark.parametrize("zone", [ZONE, *FURTHER])
def test_filters(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    tables, config = engine.tables(zone), engine.config(zone)
    found = matches(tables, own.moment, own.filters, config, own.frozen).met
    pd.testing.assert_frame_equal(found, expected("filters", zone))
    # Equality means something only where filters tell customers apart.
    assert found.mean().between(0.01, 0.99).sum() >= 15


@pytest.mark.parametrize("zone", [pytest.param(ZONE, marks=pytest.mark.slow), *FURTHER])
def test_frozen_values(engine: OnEngine, zone: str) -> None:
    own = shop(zone)
    assert own.frozen.at is not None
    found = fit_frozen(engine.tables(zone), own.frozen.at, engine.config(zone))
    assert found == own.frozen
