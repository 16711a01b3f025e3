"""Local dates in the query and in numpy agree with zoneinfo, to the microsecond."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import ibis
import numpy as np
import pyarrow as pa
import pytest

from features.localtime import local_day, local_days, utc_offsets

ZONES = [
    "UTC",
    "Asia/Shanghai",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",  # half hours; changed its clocks one minute after midnight
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Africa/Casablanca",  # goes back for Ramadan
    "Pacific/Apia",  # left out 2011-12-30
]


def _times(zone: str) -> list[datetime]:
    """Around every change of the clocks, around midnights, and far ends."""
    changes = [at for at, _ in utc_offsets(zone, 2009, 2026)]
    steps = [timedelta(microseconds=1), timedelta(seconds=1), timedelta(hours=1)]
    times = [c + k * s for c in changes for s in steps for k in (-1, 0, 1)]
    for day in range(0, 6000, 37):
        midnight = datetime(2010, 1, 1, tzinfo=ZoneInfo(zone)) + timedelta(days=day)
        at = midnight.astimezone(UTC).replace(tzinfo=None)
        times += [at, at - timedelta(microseconds=1), at + timedelta(seconds=1)]
    return times


def _truth(times: list[datetime], zone: str) -> list[int]:
    local = (t.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).date() for t in times)
    return [(day - date(1970, 1, 1)).days for day in local]


@pytest.mark.parametrize("zone", ZONES)
def test_local_days(zone: str) -> None:
    times = _times(zone)
    want = _truth(times, zone)
    array = np.array(times, dtype="datetime64[us]")
    assert local_days(array, zone).tolist() == want
    table = ibis.memtable(pa.table({"i": range(len(times)), "t": pa.array(array)}))
    years = [t.year for t in times]
    day = local_day(table.t, utc_offsets(zone, min(years), max(years)))
    con = ibis.duckdb.connect(threads=1)
    found = con.to_pyarrow(table.select("i", day=day).order_by("i"))
    assert found["day"].to_pylist() == want


def test_days_before_1970_and_no_days() -> None:
    times = [datetime(1969, 12, 31, 23, 59, 59, 999999), datetime(1955, 5, 1)]
    array = np.array(times, dtype="datetime64[us]")
    assert local_days(array, "UTC").tolist() == _truth(times, "UTC") == [-1, -5359]
    assert local_days(array[:0], "UTC").tolist() == []
