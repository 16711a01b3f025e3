"""Local dates of UTC times, exact across daylight saving, on any engine.

An engine's own zone conversion depends on its session and its own copy of the zone rules. Here the
rules are Python's `zoneinfo`: the offset of a time is looked up in the list of the zone's
transitions, which becomes a balanced tree of comparisons in the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt

EPOCH = date(1970, 1, 1)
DAY = 86_400
Offsets = list[tuple[datetime, int]]
_FIRST, _LAST = datetime(1, 1, 3), datetime(9999, 12, 28)


def _offset(zone: ZoneInfo, moment: datetime) -> int:
    offset = moment.replace(tzinfo=UTC).astimezone(zone).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


@lru_cache(maxsize=64)
def utc_offsets(name: str, first_year: int, last_year: int) -> Offsets:
    """Offsets of a zone in those years: (naive UTC start, seconds east of UTC), by start.

    Walks day by day and halves every day in which the offset changes, to the second.
    """
    zone = ZoneInfo(name)
    start = max(_FIRST, datetime(max(first_year, 1), 1, 1))
    end = min(_LAST, datetime(min(last_year, 9998) + 1, 1, 1))
    found = [(start, _offset(zone, start))]
    step = timedelta(days=1)
    while start < end:
        after = start + step
        if _offset(zone, after) != found[-1][1]:
            low, high = start, after
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=1) // 2)
                if _offset(zone, middle) == found[-1][1]:
                    low = middle
                else:
                    high = middle
            found.append((high, _offset(zone, high)))
        start = after
    return found


def local_day(time: ir.Value, offsets: Offsets) -> ir.Value:
    """Local date of naive UTC times, as whole days since 1970-01-01."""
    return (_local_seconds(time, offsets) // DAY).cast("int32")


def local_hour(time: ir.Value, offsets: Offsets) -> ir.Value:
    """Local hour, 0 to 23, of naive UTC times."""
    seconds = _local_seconds(time, offsets)
    return (seconds - (seconds // DAY) * DAY) // 3600


# Whole local hours, first and last; night is the others.
DAYPARTS = {"morning": (6, 10), "lunch": (11, 13), "afternoon": (14, 16), "evening": (17, 20)}
NIGHT = "night"


def in_daypart(hour: ir.Value, name: str) -> ir.Value:
    """Whether a local hour is of a part of the day."""
    if name == NIGHT:
        return ~hour.between(6, 20)
    return hour.between(*DAYPARTS[name])


def month_of(day: ir.Value) -> ir.Value:
    """Month, 1 to 12, of days since 1970-01-01."""
    return date_of(day).month()


def date_of(day: ir.Value) -> ir.Value:
    """The date of days since 1970-01-01."""
    return (ibis.date(EPOCH) + day.cast("int64").as_interval("D")).cast("date")


def is_weekend(day: ir.Value, overrides: Mapping[str, bool]) -> ir.Value:
    """Whether a local day is a Saturday or Sunday; overrides (date -> is it one) decide first."""
    # 1970-01-01, day 0, was a Thursday; the second modulo serves days before it.
    weekend = ((day + 3) % 7 + 7) % 7 >= 5
    free = [_number(text) for text, is_free in overrides.items() if is_free]
    worked = [_number(text) for text, is_free in overrides.items() if not is_free]
    if worked:
        weekend = weekend & day.notin(worked)
    return weekend | day.isin(free) if free else weekend


def anniversary_distance(today: ir.Value, first: ir.Value) -> ir.Value:
    """Days from today to the nearest anniversary of a day, all since 1970-01-01.

    29 February is 1 March in other years.
    """
    born, this = date_of(first), date_of(today).year()

    def apart(year: ir.Value) -> ir.Value:
        begin = ibis.date(year, born.month(), ibis.literal(1)).delta(ibis.date(EPOCH), unit="day")
        return (begin + born.day() - 1 - today).abs()

    return ibis.least(*(apart(this + shift) for shift in (-1, 0, 1)))


def _number(text: str) -> int:
    return (date.fromisoformat(text) - EPOCH).days


def _local_seconds(time: ir.Value, offsets: Offsets) -> ir.Value:
    return time.epoch_seconds() + _offset_at(time, offsets)


def _offset_at(time: ir.Value, offsets: Offsets) -> ir.Value | int:
    if len(offsets) == 1:
        return offsets[0][1]
    middle = len(offsets) // 2
    return ibis.ifelse(
        time < ibis.timestamp(offsets[middle][0].isoformat()),
        _offset_at(time, offsets[:middle]),
        _offset_at(time, offsets[middle:]),
    )


def local_time(time: ir.Value, offsets: Offsets) -> ir.Value:
    """Naive UTC times as naive local times."""
    if len(offsets) == 1:
        seconds = offsets[0][1]
        return time + ibis.interval(seconds=seconds) if seconds else time
    middle = len(offsets) // 2
    return ibis.ifelse(
        time < ibis.timestamp(offsets[middle][0].isoformat()),
        local_time(time, offsets[:middle]),
        local_time(time, offsets[middle:]),
    )


def local_days(times: npt.NDArray[np.datetime64], zone: str) -> npt.NDArray[np.int64]:
    """Local dates of an array of naive UTC times, as days since 1970-01-01; the same rule."""
    if len(times) == 0:
        return np.empty(0, dtype=np.int64)
    times = times.astype("datetime64[us]")
    offsets = utc_offsets(zone, *(int(str(t)[:4]) for t in (times.min(), times.max())))
    starts = np.array([start for start, _ in offsets[1:]], dtype="datetime64[us]")
    seconds = np.array([s for _, s in offsets], dtype="timedelta64[s]")
    local = times + seconds[np.searchsorted(starts, times, side="right")]
    days: npt.NDArray[np.int64] = local.astype("datetime64[D]").astype(np.int64)
    return days
