"""The tables of a source, checked, in one DuckDB connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ibis.expr.types as ir


@dataclass(frozen=True)
class Tables:
    """What `Source.tables()` returns: checked tables with canonical names and types.

    Times are naive UTC timestamps (microseconds), ids are text. A table that the source does not
    have is None. `quarantine` counts what was set aside; `digest` identifies the data.
    """

    con: Any
    transactions: ir.Table | None
    exposures: ir.Table | None
    customers: ir.Table | None = None
    events: ir.Table | None = None
    digest: str = ""
    simulated: bool = False
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
