"""Every test of this folder runs on every engine; what an engine needs is in its own conftest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.audience import matches
from features.build import build_features
from features.config import Config
from features.frozen import FrozenValues, fit_frozen
from features.segment_table import segment_table
from features.tables import Tables
from tests.contracts.test_features import NAMES
from tests.contracts.test_features import shop as contract_shop
from tests.unit.features.test_audience_random import AUDIENCES, COMPARED, make_filter

ENGINES = ("duckdb", "spark")


@dataclasses.dataclass
class OnEngine:
    """An engine, and the shops as they are asked of it."""

    name: str
    gaps: dict[str, str]
    engine: Any
    moved: dict[str, Tables] = dataclasses.field(default_factory=dict)
    found: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    def config(self, zone: str) -> Config:
        return shop(zone).config.model_copy(update={"engine": self.name})

    def tables(self, zone: str) -> Tables:
        if zone not in self.moved:
            self.moved[zone] = self.engine.tables(shop(zone).tables)
        return self.moved[zone]

    def catalogue(self, zone: str) -> pd.DataFrame:
        """All features, helpers and a window of any length, at many moments."""
        return self._once("catalogue", zone, shop(zone).spine)

    def one_moment(self, zone: str) -> pd.DataFrame:
        """The same for each customer at one moment."""
        return self._once("one moment", zone, shop(zone).moment)

    def _once(self, what: str, zone: str, spine: pd.DataFrame) -> pd.DataFrame:
        if (what, zone) not in self.found:
            tables, config = self.tables(zone), self.config(zone)
            built = build_features(tables, spine, NAMES, config, shop(zone).frozen)
            assert built.missing == ()
            self.found[what, zone] = built.frame
        return self.found[what, zone]


@dataclasses.dataclass(frozen=True)
class Shop:
    """A random shop, what DuckDB says of it on one thread, and filters that tell people apart."""

    config: Config
    frozen: FrozenValues
    tables: Tables
    spine: pd.DataFrame
    moment: pd.DataFrame
    filters: dict[str, Any]


@cache
def shop(zone: str) -> Shop:
    base = contract_shop({"UTC": 1, "Europe/Berlin": 2, "America/New_York": 3}[zone], zone)
    sections = {"audiences": {name: {"filter": node} for name, node in AUDIENCES.items()}}
    config = Config.model_validate(base.config.model_dump() | sections)
    tables = base.tables()
    frozen = fit_frozen(tables, pd.Timestamp("2025-07-01").to_pydatetime(), config)
    times = sorted(row["transacted_at"] for row in base.rows["transactions"])
    customers = sorted(set(base.spine["customer_id"]))
    moment = pd.DataFrame({"customer_id": customers, "as_of": times[len(times) * 3 // 4]})
    values = build_features(tables, base.spine, COMPARED, config, frozen).frame
    seen = {name: sorted(values[name].dropna().unique().tolist()) for name in COMPARED}
    rng = np.random.default_rng(17)
    filters = {f"f{i}": make_filter(rng, seen) for i in range(40)}
    return Shop(config, frozen, tables, base.spine, moment, filters)


@cache
def expected(what: str, zone: str) -> Any:
    """What DuckDB says on one thread: `catalogue`, `one moment`, `segments`, `filters`."""
    own = shop(zone)
    if what == "segments":
        return segment_table(own.tables, own.moment, own.config, own.frozen)[0]
    if what == "filters":
        return matches(own.tables, own.moment, own.filters, own.config, own.frozen).met
    spine = own.spine if what == "catalogue" else own.moment
    return build_features(own.tables, spine, NAMES, own.config, own.frozen).frame


def assert_equal(found: pd.Series[Any], want: pd.Series[Any], *, exact: bool) -> None:
    """Texts and counts exactly, numbers to |a-b| <= 1e-9 * max(1, |a|, |b|); NULL equals NULL."""
    if found.dtype == object:
        wrong = [a != b for a, b in zip(found, want, strict=True)]
    else:
        a, b = found.to_numpy(dtype=float), want.to_numpy(dtype=float)
        within = 0.0 if exact else 1e-9 * np.maximum(1, np.maximum(np.abs(a), np.abs(b)))
        wrong = ~((np.abs(a - b) <= within) | (np.isnan(a) & np.isnan(b)))
    both = pd.DataFrame({"found": found, "want": want})
    assert not np.any(wrong), both[np.asarray(wrong)].to_string()


@pytest.fixture(scope="session", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnEngine]:
    own = import_module(f"tests.engines.{request.param}.conftest")
    if reason := own.Engine.missing():
        pytest.skip(reason)
    started = own.Engine(tmp_path_factory.mktemp(own.NAME))
    yield OnEngine(own.NAME, own.GAPS, started)
    started.close()
