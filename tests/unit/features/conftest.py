"""Small tables in the canonical schema, and the ten customers of the rules' worked example."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
import pytest

from features.config import Config, validate
from features.tables import Tables
from tests.unit.features import worked_example

TIME = pa.timestamp("us")
SCHEMAS = {
    "transactions": {
        "customer_id": pa.string(),
        "order_id": pa.string(),
        "transacted_at": TIME,
        "amount": pa.float64(),
        "discount": pa.float64(),
        "product_id": pa.string(),
        "category": pa.string(),
        "quantity": pa.float64(),
        "channel": pa.string(),
        "store_id": pa.string(),
        "payment_method": pa.string(),
        "coupon_id": pa.string(),
        "line_id": pa.string(),
    },
    "exposures": {
        "exposure_id": pa.string(),
        "customer_id": pa.string(),
        "campaign_id": pa.string(),
        "assigned_at": TIME,
        "arm": pa.string(),
        "assignment_prob": pa.float64(),
        "cost": pa.float64(),
        "channel": pa.string(),
        "variant": pa.string(),
    },
    "customers": {
        "customer_id": pa.string(),
        "birth_month": pa.int64(),
        "gender": pa.string(),
        "region": pa.string(),
        "joined_at": TIME,
        "marketing_consent": pa.bool_(),
        "consented_channels": pa.string(),
    },
    "events": {
        "event_id": pa.string(),
        "customer_id": pa.string(),
        "campaign_id": pa.string(),
        "type": pa.string(),
        "occurred_at": TIME,
        "coupon_id": pa.string(),
        "value": pa.float64(),
    },
}
_connection = None
_serial = itertools.count()


def arrow(name: str, frame: pd.DataFrame) -> pa.Table:
    """A table in the canonical schema; columns the frame lacks are NULL, further ones stay."""
    frame = frame.reset_index(drop=True)
    columns: dict[str, Any] = {}
    for column, kind in SCHEMAS[name].items():
        if column not in frame:
            columns[column] = pa.nulls(len(frame), kind)
        elif kind == TIME:
            times = pd.to_datetime(frame[column], utc=True, format="ISO8601").dt.tz_localize(None)
            columns[column] = pa.array(times.dt.as_unit("us").to_numpy(), type=TIME)
        else:
            columns[column] = pa.array(
                [None if pd.isna(v) else v for v in frame[column]], type=kind
            )
    for column in frame.columns.difference(list(columns)):
        columns[column] = pa.array(frame[column])
    return pa.table(columns)


def make_tables(**frames: pd.DataFrame | None) -> Tables:
    """Tables of one shared connection; a name that is not given is an absent table."""
    global _connection
    if _connection is None:
        _connection = ibis.duckdb.connect(threads=1)
    made: dict[str, Any] = dict.fromkeys(SCHEMAS)
    for name, frame in frames.items():
        if frame is not None:
            table = ibis.memtable(arrow(name, frame))
            made[name] = _connection.create_table(f"{name}_{next(_serial)}", table, temp=True)
    return Tables(_connection, **made)


def make_config(**sections: Any) -> Config:
    """A configuration with the worked example's offers, unless told otherwise."""
    raw: dict[str, Any] = {
        "name": "test",
        "source": {"kind": "files", "path": "unused"},
        "outcome": {"kind": "conversion"},
        "offers": worked_example.OFFERS,
    }
    return validate(raw | sections)


@pytest.fixture
def tables() -> Callable[..., Tables]:
    return make_tables


@pytest.fixture
def config() -> Callable[..., Config]:
    return make_config


@pytest.fixture(scope="session")
def example() -> Tables:
    """The worked example's transactions and exposures."""
    return make_tables(
        transactions=pd.read_csv(io.StringIO(worked_example.TRANSACTIONS), dtype={"amount": float}),
        exposures=pd.read_csv(io.StringIO(worked_example.EXPOSURES)),
    )


@pytest.fixture(scope="session")
def example_config() -> Config:
    return make_config(timezone=worked_example.ZONE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t" / "transactions").mkdir(parents=True)
    return tmp_path / "t" / "transactions"
