"""Bad rows: set aside with their reason, counted, and a stop above the allowed share.

A reason is written `<code>:<column>` inside a table in work; the file and the counts hold the code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.config import Config
from features.contracts import CONTRACTS, NOUNS, REASONS, Column
from features.errors import MAX_KEYS, DataError
from features.parsing import literal, quote
from features.problems import Problems, fail

FOLDER = Path("data/quarantine")
LONGEST = 60
RESERVED = ("reason", "reason_column", "row_number")


@dataclass(frozen=True)
class BadRows:
    """How many rows of one column have one reason, with at most five of them as examples."""

    reason: str
    column: str
    count: int
    examples: tuple[str, ...]


def quarantine_path(config: Config, table: str) -> Path:
    """Where the bad rows of a table go, relative to the working directory."""
    return FOLDER / config.name / f"{table}.parquet"


def bad_rows(con: Any, work: str, key: str) -> list[BadRows]:
    """The bad rows of a table in work by reason and column, the most frequent first.

    `work` has `_row` (1 is the first), `_reason`, `_value` (text of the offending column) and the
    column `key` (may be NULL).
    """
    rows = con.execute(
        f"""
        SELECT split_part(_reason, ':', 1), split_part(_reason, ':', 2), count(*),
            min(coalesce(CAST({quote(key)} AS VARCHAR), 'row ' || _row)
                || CASE WHEN _value IS NULL OR _value = CAST({quote(key)} AS VARCHAR) THEN ''
                   ELSE ': ' || left(_value, {LONGEST}) END, 20)
        FROM {work} WHERE _reason IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
        """
    ).fetchall()
    return [
        BadRows(reason, column, count, tuple(map(one_line, sorted(set(examples))[:MAX_KEYS])))
        for reason, column, count, examples in rows
    ]


def one_line(text: str, longest: int = LONGEST) -> str:
    """A foreign text as it may stand in a message: on one line, printable, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


def write_quarantine(
    con: Any,
    work: str,
    originals: list[str],
    rejected: str | None,
    path: Path,
    part: str | None = None,
) -> None:
    """Write the bad rows with their original values as text and their reason, atomically.

    Columns: the originals, then `reason`, `reason_column`, `row_number`; of lines that are not
    valid CSV those of `rejected`, `csv_line` among them. `part`: a column for each of whose values
    rows are numbered anew.
    """
    taken = {name.lower() for name in RESERVED} | {"csv_line"}
    names = [f"{name}_original" if name.lower() in taken else name for name in originals]
    columns = ", ".join(f"_original[{i + 1}] AS {quote(n)}" for i, n in enumerate(names))
    rows, number = work, "_row"
    if part:
        first = f"SELECT {quote(part)}, min(_row) AS _first FROM {work} GROUP BY 1"
        rows, number = f"{work} JOIN ({first}) USING ({quote(part)})", "_row - _first + 1"
    query = f"""
        SELECT {columns}, split_part(_reason, ':', 1) AS reason,
            split_part(_reason, ':', 2) AS reason_column, {number} AS row_number
        FROM {rows} WHERE _reason IS NOT NULL"""
    if rejected:
        query += f"""
        UNION ALL BY NAME
        SELECT 'bad_line' AS reason, '' AS reason_column, CAST(NULL AS BIGINT) AS row_number,
            * FROM {rejected}"""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    con.execute(f"COPY ({query}) TO {literal(str(aside))} (FORMAT parquet)")
    os.replace(aside, path)


def judge(
    table: str,
    read: int,
    bad: list[BadRows],
    config: Config,
    problems: Problems | None,
) -> None:
    """Stop (DataError) when the share of bad rows is above source.max_bad_share."""
    total = sum(group.count for group in bad)
    if not total or total <= config.source.max_bad_share * read:
        return
    worst = bad[0]
    where = f"{table}.{worst.column}" if worst.column else table
    others = [f"{g.count} {g.reason} in {g.column or 'the file'}" for g in bad[1:4]]
    also = f" (also {', '.join(others)})" if others else ""
    share = f"{100 * config.source.max_bad_share:g}%"
    fail(
        problems,
        DataError(
            where,
            expected=f"at most {share} bad rows",
            found=f"{total} of {read} rows bad: {worst.count} {worst.reason} in "
            f"{worst.column or 'the file'}{also}; {worst.reason} is {REASONS[worst.reason]}",
            remedy=f"{_remedy(worst, table)} The rows are in {quarantine_path(config, table)}; "
            "source.max_bad_share sets the share that is allowed.",
            keys=worst.examples,
        ),
    )


def _remedy(worst: BadRows, table: str) -> str:
    if worst.reason == "unknown_arm":
        return "Add these arms to offers (active: false for a retired one), or mend the rows."
    if worst.reason == "bad_line":
        return "Save the file as UTF-8 with as many fields on each line as in the header."
    if worst.reason == "missing_key" and worst.column == "customer_id":
        return "Give every row a customer, or allow for sales to guests."
    column = _column(table, worst.column)
    return f"Mend them; {worst.column} holds {NOUNS[column.kind]}." if column else "Mend them."


def _column(table: str, name: str) -> Column | None:
    contract = CONTRACTS[table]
    return contract[name] if name in contract.names else None
