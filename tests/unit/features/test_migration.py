"""The migration matrix: the worked example, its invariants, its refusals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.build import build_features
from features.config import Config
from features.errors import ConfigError, DataError
from features.frozen import FrozenValues, fit_frozen
from features.migration import MIGRATION_SCHEMES, NOT_SEEN, migration
from features.segment_names import COLUMNS, score_ids, segments_of
from features.segments import SEGMENT_FEATURES, segments
from features.spine import all_customers
from features.tables import Tables
from tests.unit.features.conftest import make_config, make_tables
from tests.unit.features.random_shop import make_exposures, make_lines
from tests.unit.features.test_segments import FROZEN
from tests.unit.features.worked_example import AS_OF

BEFORE = datetime(2025, 12, 1, 16, tzinfo=UTC)


def test_worked_example(example: Tables, example_config: Config) -> None:
    found = migration(example, "tier", BEFORE, AS_OF, example_config, FROZEN)
    cells = {
        (a, b): n for a, row in found.counts.to_dict("index").items() for b, n in row.items() if n
    }
    assert cells == {
        ("regular", "champion"): 1,
        ("potential", "potential"): 1,
        ("potential", "sleeping"): 1,
        ("sleeping", "lost"): 1,
        ("new", "regular"): 1,
        ("potential", "regular"): 1,
        (NOT_SEEN, "new"): 2,
        (NOT_SEEN, "prospect"): 1,
    }
    assert found.changed.to_numpy().tolist() == [
        ["A", "regular", "champion"],
        ["C", NOT_SEEN, "new"],
        ["D", "potential", "sleeping"],
        ["E", "sleeping", "lost"],
        ["F", "new", "regular"],
        ["G", "potential", "regular"],
        ["H", NOT_SEEN, "prospect"],
        ["I", NOT_SEEN, "new"],
    ]
    assert found.shares.loc["potential", "sleeping"] == pytest.approx(1 / 3)
    assert found.shares.loc[NOT_SEEN, "new"] == pytest.approx(2 / 3)
    assert found.shares.loc["champion"].isna().all()
    assert found.frozen is FROZEN


START, END = datetime(2024, 9, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC)
FIVE = make_config(segments={"score_levels": 5})


@dataclass(frozen=True)
class Shop:
    """A random shop, its cuts at START, and its segments at both moments, each built on its own."""

    tables: Tables
    frozen: FrozenValues
    start: pd.DataFrame
    end: pd.DataFrame


@pytest.fixture(scope="module")
def shop() -> Shop:
    rng = np.random.default_rng(5)
    lines = make_lines(rng, "UTC")
    tables = make_tables(
        transactions=pd.DataFrame(lines, dtype=object),
        exposures=pd.DataFrame(make_exposures(rng, lines), dtype=object),
    )
    frozen = fit_frozen(tables, START, FIVE)
    each = []
    for moment in (START, END):
        spine = all_customers(tables, moment, FIVE)
        built = build_features(tables, spine, SEGMENT_FEATURES, FIVE, frozen).frame
        found = segments(built, frozen, FIVE.segments)
        found.index = pd.Index(spine["customer_id"])
        each.append(found)
    return Shop(tables, frozen, *each)


def _ids(found: pd.DataFrame, scheme: str) -> dict[str, str]:
    values = found[COLUMNS.get(scheme, scheme)]
    return dict((score_ids(values) if scheme.endswith("_score") else values).items())


@pytest.mark.parametrize("scheme", MIGRATION_SCHEMES)
def test_invariants(shop: Shop, scheme: str) -> None:
    # Without given cuts they are those of the first moment.
    given = None if scheme == "m_score" else shop.frozen
    found = migration(shop.tables, scheme, START, END, FIVE, given)
    assert found.frozen == shop.frozen
    before, after = _ids(shop.start, scheme), _ids(shop.end, scheme)
    assert found.counts.to_numpy().sum() == len(after)
    ids = [s.id for s in segments_of(scheme, 5)]
    assert found.counts.columns.tolist() == ids
    sizes = {i: list(before.values()).count(i) for i in ids} | {NOT_SEEN: len(after) - len(before)}
    assert found.counts.sum(axis=1).to_dict() == sizes
    assert found.counts.sum(axis=0).to_dict() == {i: list(after.values()).count(i) for i in ids}
    for a in (*ids, NOT_SEEN):
        row = found.shares.loc[a]
        assert row.isna().all() if sizes[a] == 0 else np.isclose(row.sum(), 1)
    moved = {c: (before.get(c, NOT_SEEN), after[c]) for c in after if before.get(c) != after[c]}
    assert {c: (a, b) for c, a, b in found.changed.to_numpy().tolist()} == moved
    assert len(moved) > 0


def test_nothing_changes_without_days_between(example: Tables, example_config: Config) -> None:
    """A moment later on the same day, with no row between, nobody has moved."""
    t0 = AS_OF - timedelta(hours=5)
    found = migration(example, "tier", t0, t0 + timedelta(hours=4), example_config, FROZEN)
    assert len(found.changed) == 0
    assert found.counts.to_numpy().sum() == np.trace(found.counts.to_numpy()[:-1]) == 9


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"scheme": "colour"}, ConfigError, "scheme: expected one of tier, rfm_class, stage"),
        ({"t1": BEFORE}, ConfigError, "expected the first moment before the second"),
        ({"t0": datetime(2020, 1, 1, tzinfo=UTC)}, DataError, "before as_of 2020-01-01"),
    ],
)
def test_refusals(
    example: Tables,
    example_config: Config,
    values: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    arguments: dict[str, Any] = {"scheme": "tier", "t0": BEFORE, "t1": AS_OF} | values
    with pytest.raises(error, match=message):
        migration(example, config=example_config, **arguments)


def test_without_transactions() -> None:
    with pytest.raises(DataError, match="transactions: expected orders"):
        migration(make_tables(), "tier", BEFORE, AS_OF, make_config())
