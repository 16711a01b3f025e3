"""Small helpers of all checks: run a query, say a share, show examples."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from features.errors import MAX_KEYS
from features.quarantine import one_line
from features.tables import Tables


def rows(tables: Tables, sql: str) -> list[Any]:
    return list(tables.con.con.execute(sql).fetchall())


def share(part: int, whole: int) -> str:
    """`3 of 12 (25.0%)`."""
    return f"{part} of {whole} ({100 * part / whole:.1f}%)" if whole else "0 of 0"


def examples(keys: Iterable[object] | None) -> str:
    """` (for example a, b)`, at most five in order, or nothing."""
    shown = sorted(one_line(str(key)) for key in keys or () if key is not None)[:MAX_KEYS]
    return f" (for example {', '.join(shown)})" if shown else ""


def timestamp(moment: datetime) -> str:
    """An aware moment as an SQL literal."""
    naive = moment.astimezone(UTC).replace(tzinfo=None)
    return f"TIMESTAMP '{naive.isoformat(sep=' ')}'"
