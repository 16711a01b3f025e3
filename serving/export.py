"""The log as tables of the contract, `exposures` and `events`, so that training learns from it.

An exposure is the first draw of a customer in a window of a campaign, whether or not the offer was
made: one that lost the race for the last money or piece was drawn as well (ADR 0026). What was
refused before the draw is none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Select, exists, func, select

from features.errors import ConfigError
from serving.log.engine import Log
from serving.log.schema import decisions, events
from serving.log.store import stands

CHUNK = 50_000
_MICROS = 1_000_000.0
_TIME = pa.timestamp("us")

EXPOSURES = pa.schema(
    [
        ("exposure_id", pa.string()),
        ("customer_id", pa.string()),
        ("campaign_id", pa.string()),
        ("assigned_at", _TIME),
        ("arm", pa.string()),
        ("assignment_prob", pa.float64()),
        ("assignment_probs", pa.string()),
        ("holdout_kind", pa.string()),
        ("window_id", pa.string()),
        ("decision_id", pa.string()),
        ("cost", pa.float64()),
    ]
)
EVENTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("customer_id", pa.string()),
        ("campaign_id", pa.string()),
        ("type", pa.string()),
        ("occurred_at", _TIME),
        ("coupon_id", pa.string()),
        ("value", pa.float64()),
    ]
)


def export_log(log: Log, folder: Path) -> dict[Path, int]:
    """Write `exposures.parquet` and `events.parquet`; returns the rows of each file.

    Erased customers have random names, which match nobody. Raises ConfigError for a folder that
    can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.read() as connection:
            log.patient(connection)
            stream = connection.execution_options(yield_per=CHUNK)
            return {
                path: _write(path, schema, _chunks(stream, query, schema))
                for path, schema, query in (
                    (folder / "exposures.parquet", EXPOSURES, _exposures()),
                    (folder / "events.parquet", EVENTS, _events()),
                )
            }
    except OSError as error:
        raise ConfigError(
            f"--out {folder}",
            expected="a folder that can be written",
            found=str(error.strerror),
            remedy="Name another one.",
        ) from None


def _exposures() -> Select[Any]:
    d, standing, other = decisions.c, decisions.alias("standing"), decisions.alias("other")
    s, o = standing.c, other.c
    earlier = exists().where(
        o.campaign_id == d.campaign_id,
        o.customer_id == d.customer_id,
        o.window_id == d.window_id,
        o.probs.is_not(None),
        o.decision_id < d.decision_id,
    )
    return (
        select(
            d.decision_id.label("exposure_id"),
            d.customer_id,
            d.campaign_id,
            d.decided_at.label("assigned_at"),
            d.arm,
            d.assignment_prob,
            d.probs.label("assignment_probs"),
            d.holdout_kind,
            d.window_id,
            d.decision_id,
            # What a redemption came to cost; 0 for an offer that nobody has redeemed, null while
            # that is open, since the reservation is what was expected and not what it cost.
            func.coalesce(s.realised_micros, 0).label("cost"),
            s.reservation,
        )
        .join(standing, stands(d, s), isouter=True)
        .where(d.probs.is_not(None), ~earlier)
        .order_by(d.decision_id)
    )


def _events() -> Select[Any]:
    e = events.c
    return select(
        e.event_id,
        e.customer_id,
        e.campaign_id,
        e.type,
        e.occurred_at,
        e.arm.label("coupon_id"),
        e.value_micros.label("value"),
    ).order_by(e.event_id)


def _chunks(connection: Any, query: Select[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    for rows in connection.execute(query).mappings().partitions():
        columns = {}
        for field in schema:
            values = [row[field.name] for row in rows]
            if field.name == "cost":
                open_ = [row["reservation"] == "held" for row in rows]
                values = [None if o else v / _MICROS for o, v in zip(open_, values, strict=True)]
            elif field.name == "value":
                values = [None if v is None else v / _MICROS for v in values]
            elif field.name == "window_id":
                values = [str(v) for v in values]
            elif field.name == "coupon_id":
                values = [None if v == "control" else v for v in values]
            columns[field.name] = pa.array(values, field.type)
        yield pa.table(columns, schema=schema)


def _write(path: Path, schema: pa.Schema, chunks: Iterator[pa.Table]) -> int:
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    rows = 0
    try:
        with pq.ParquetWriter(aside, schema) as out:
            for chunk in chunks:
                out.write_table(chunk)
                rows += len(chunk)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return rows
