"""Times as the log holds them, whole microseconds of Unix time, and as answers show them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(moment: datetime) -> int:
    """Microseconds of Unix time."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    """The UTC time of microseconds of Unix time."""
    return EPOCH + timedelta(microseconds=value)


def shown_time(value: int | None) -> str | None:
    return None if value is None else timestamp(moment(value))


# Nearly every answer shows the two that the answer before showed.
@lru_cache(maxsize=256)
def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC; a time without a zone is UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat() + "Z"


def now_micros() -> int:
    return micros(datetime.now(UTC))
