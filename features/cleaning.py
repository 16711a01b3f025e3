"""From raw columns to a canonical table: types, reasons for quarantine, repeats; in one SQL pass.

Ten million order lines pass through DuckDB once; nothing is held in pandas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from features.config import CONTROL, Config
from features.contracts import CONTRACTS, NOUNS, REASONS, SQL_TYPES, Column, TableContract
from features.errors import DataError
from features.identities import identify, report_sources
from features.mapping import Field, Raw, find_fields
from features.parsing import bad, literal, quote, value
from features.problems import Problems, fail
from features.quarantine import (
    BadRows,
    bad_rows,
    judge,
    one_line,
    quarantine_path,
    write_quarantine,
)

# Which column names the row in a message, per table.
ROW_KEYS = {"transactions": "order_id", "events": "event_id", "identities": "source_customer_id"}
WORK = ("_row", "_reason", "_value", "_original")
PART = "_part"


@dataclass(frozen=True)
class Cleaned:
    """What cleaning a table came to: `read` = `kept` + rows in `bad` + `dropped`.

    `identical`: kept order lines that repeat an earlier one in every column. `given`: canonical
    columns that the raw table has. `parts`: per file (`Raw.part`) `read` and one number per reason.
    """

    read: int
    kept: int
    bad: tuple[BadRows, ...] = ()
    dropped: int = 0
    identical: int = 0
    given: frozenset[str] = frozenset()
    parts: Mapping[str, Mapping[str, int]] | None = None

    @property
    def counts(self) -> dict[str, int]:
        found = {"read": self.read, "kept": self.kept}
        for group in self.bad:
            found[group.reason] = found.get(group.reason, 0) + group.count
        if self.dropped:
            found["duplicate_dropped"] = self.dropped
        return found


def clean(
    con: Any,
    table: str,
    raw: Raw,
    config: Config,
    *,
    identities: bool = False,
    problems: Problems | None = None,
) -> Cleaned | None:
    """Make the canonical table `table` in the connection; bad rows go to the quarantine file.

    `identities`: apply the table `identities`, which is already clean. Returns None when a problem
    was collected that leaves nothing to work with. Raises DataError, ConfigError.
    """
    contract = CONTRACTS[table]
    try:
        rows = con.execute(f"DESCRIBE SELECT * FROM {raw.relation}").fetchall()
        types = {str(row[0]): str(row[1]) for row in rows}
        fields = find_fields(con, contract, types, raw, config, problems)
        if fields is None:
            return None
        _load(con, contract, fields, list(types), raw, config, identities)
        return _settle(con, contract, fields, list(types), raw, config, identities, problems)
    except duckdb.Error as error:
        fail(problems, unreadable(raw.origin, error))
        return None


def unreadable(origin: str, error: Exception) -> DataError:
    """DuckDB's refusal of a file, in our words."""
    reason = one_line(str(error), 200)
    if isinstance(error, duckdb.OutOfMemoryException):
        return DataError(
            origin,
            expected="tables that fit into memory_gb, or room for temporary files",
            found=reason,
            remedy="Raise memory_gb, or make room on the disk.",
        )
    return DataError(
        origin,
        expected="a table that can be read",
        found=f"a damaged or foreign file: {reason}",
        remedy="Write the file again as Parquet, or as CSV in UTF-8 with a header.",
    )


def _load(
    con: Any,
    contract: TableContract,
    fields: Sequence[Field],
    originals: Sequence[str],
    raw: Raw,
    config: Config,
    identities: bool,
) -> None:
    """Create the table in work: canonical columns and the columns WORK.

    Raw columns are renamed first, because a raw column may bear the name of a canonical one that
    it is not mapped to.
    """
    alias = {name: f"_c{i}" for i, name in enumerate(originals)}
    base, picks, values, whens, offending = [], [], [], [], []
    for name, short in alias.items():
        base.append(f"{quote(name)} AS {short}")
    for i, field in enumerate(fields):
        name, kind, came = quote(field.column.name), field.column.kind, f"_r{i}"
        if field.absent:
            made = f"CAST(NULL AS {SQL_TYPES[kind]})"
        else:
            picks.append(f"{field.sql(alias.get(field.raw or '', ''))} AS {came}")
            made = value(came, field.sql_type, kind, csv=raw.csv)
            label = literal(field.column.name)
            offending.append(f"WHEN {label} THEN CAST({came} AS VARCHAR)")
            for reason, condition in (
                *bad(name, came, field.sql_type, kind, field.column.required),
                *field.column.rules,
            ):
                whens.append(_when(condition, reason, field.column.name))
        if field.column.name in ("exposure_id", "event_id"):
            made = f"coalesce({made}, '{'e' if contract.name == 'exposures' else 'v'}' || _row)"
        values.append(f"{made} AS {name}")
    if contract.name == "exposures":
        arms = ", ".join(literal(arm) for arm in (CONTROL, *config.arms))
        whens.append(_when(f"arm NOT IN ({arms})", "unknown_arm", "arm"))

    steps = [
        f"_based AS (SELECT {', '.join(base)}, row_number() OVER () AS _row FROM {raw.relation})",
        f"_picked AS (SELECT *, {', '.join(picks)} FROM _based)",
        f"_valued AS (SELECT *, {', '.join(values)} FROM _picked)",
    ]
    last = "_valued"
    if identities:
        steps += identify(fields)
        last = "_identified"
    steps.append(f"_judged AS (SELECT *, CASE {' '.join(whens)} END AS _reason FROM {last})")
    last = "_judged"
    if contract.unique:
        again = (
            f"_reason IS NULL AND row_number() OVER "
            f"(PARTITION BY {contract.unique}, _reason IS NULL ORDER BY _row) > 1"
        )
        repeat = literal(f"duplicate_id:{contract.unique}")
        steps.append(
            f"_once AS (SELECT * REPLACE (CASE WHEN {again} THEN {repeat} ELSE _reason END "
            f"AS _reason) FROM _judged)"
        )
        last = "_once"
    names = [_filled(field.column) for field in fields]
    if raw.part:
        names.append(f"{alias[raw.part]} AS {PART}")
    texts = ", ".join(f"CAST({short} AS VARCHAR)" for short in alias.values())
    # Joins and windows lose the order of the file, which names the first of two equal ids.
    order = "ORDER BY _row" if identities or contract.unique else ""
    con.execute(
        f"CREATE OR REPLACE TABLE {contract.name} AS WITH {', '.join(steps)} "
        f"SELECT {', '.join(names)}, _row, _reason, "
        f"CASE WHEN _reason IS NOT NULL THEN CASE split_part(_reason, ':', 2) "
        f"{' '.join(offending)} END END AS _value, "
        f"CASE WHEN _reason IS NOT NULL THEN [{texts}] END AS _original FROM {last} {order}"
    )


def _filled(column: Column) -> str:
    """The column with its default in place of NULL, after the rows were judged."""
    name = quote(column.name)
    return name if column.default is None else f"coalesce({name}, {column.default}) AS {name}"


def _when(condition: str, reason: str, column: str) -> str:
    return f"WHEN {condition} THEN {literal(f'{reason}:{column}')}"


def _settle(
    con: Any,
    contract: TableContract,
    fields: Sequence[Field],
    originals: list[str],
    raw: Raw,
    config: Config,
    identities: bool,
    problems: Problems | None,
) -> Cleaned | None:
    """Quarantine file, limits, repeats; then only good rows and canonical columns stay."""
    table = contract.name
    rejected = _count(con, raw.rejected) if raw.rejected else 0
    parts = _by_part(con, table, raw) if raw.part else None
    if parts is None:
        read = _count(con, table) + rejected
        bad = _count(con, f"{table} WHERE _reason IS NOT NULL")
    else:  # a small file takes as long as the number of queries
        read = sum(counts["read"] for counts in parts.values())
        bad = sum(sum(counts.values()) for counts in parts.values()) - read - rejected
    if not read:
        fail_empty = DataError(
            table,
            expected="rows",
            found=f"an empty table ({raw.origin})",
            remedy="Export the table again, or take the file away.",
        )
        # A day without sales is no fault.
        if table in ("transactions", "exposures") and not raw.part:
            fail(problems, fail_empty)
            return None
    found = bad_rows(con, table, ROW_KEYS.get(table, "customer_id")) if bad else []
    if rejected:
        lines = con.execute(f"SELECT csv_line FROM {raw.rejected} LIMIT 5").fetchall()
        examples = tuple(one_line(str(line[0])) for line in lines)
        found.append(BadRows("bad_line", "", rejected, examples))
        found.sort(key=lambda group: -group.count)
    if problems is not None:
        for group in found:
            shown = f" (for example {', '.join(group.examples)})" if group.examples else ""
            problems.add(
                "warning",
                f"{table}.{group.column}" if group.column else table,
                f"{group.count} rows with {group.reason}: {REASONS[group.reason]}{shown}",
            )
    path = quarantine_path(config, table)
    if found:
        part = PART if raw.part else None
        write_quarantine(con, table, originals, raw.rejected, path, part)
    else:  # those of an earlier run are no longer of this table
        path.unlink(missing_ok=True)
    if not _wrong_type(con, table, fields, found, problems):
        # Two systems that know one customer are what identities are for, not an error of the data.
        merged = table == "customers" and identities
        serious = [g for g in found if not (merged and g.reason == "duplicate_id")]
        judge(table, read, serious, config, problems)
    if bad:
        con.execute(f"DELETE FROM {table} WHERE _reason IS NOT NULL")
    dropped, identical = (0, 0) if raw.part else _repeats(con, table, fields, config)
    if problems is not None and table != "identities":
        report_sources(con, table, fields, identities, problems)
    gone = [*WORK] if table == "identities" else [*WORK, "source"]
    # The store takes what it needs from the table in work.
    for column in () if raw.part else gone:
        con.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    given = frozenset(f.column.name for f in fields if not f.absent)
    kept = read - rejected - bad - dropped
    return Cleaned(read, kept, tuple(found), dropped, identical, given, parts)


def _by_part(con: Any, table: str, raw: Raw) -> dict[str, dict[str, int]]:
    """Rows read of each file, and how many were set aside for which reason."""
    # By the whole reason first: to split it row by row takes longer.
    query = f"SELECT {PART}, _reason, count(*) FROM {table} GROUP BY 1, 2"
    rows = [(part, why and why.split(":")[0], n) for part, why, n in con.execute(query).fetchall()]
    if raw.rejected:
        query = (
            f"SELECT {quote(str(raw.part))}, 'bad_line', count(*) FROM {raw.rejected} GROUP BY 1"
        )
        rows += con.execute(query).fetchall()
    found: dict[str, dict[str, int]] = {}
    for part, reason, n in rows:
        counts = found.setdefault(part, {"read": 0})
        counts["read"] += n
        if reason:
            counts[reason] = counts.get(reason, 0) + n
    return found


def _count(con: Any, relation: str | None) -> int:
    return int(con.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _wrong_type(
    con: Any,
    table: str,
    fields: Sequence[Field],
    found: Sequence[BadRows],
    problems: Problems | None,
) -> bool:
    """A column of which no value can be read is of the wrong type, not full of bad rows."""
    kinds = {field.column.name: field.column.kind for field in fields}
    for group in found:
        if group.reason not in ("bad_time", "bad_number", "bad_boolean"):
            continue
        this = literal(f"{group.reason}:{group.column}")
        readable = f"{quote(group.column)} IS NOT NULL AND _reason IS DISTINCT FROM {this}"
        if not _count(con, f"{table} WHERE {readable}"):
            fail(
                problems,
                DataError(
                    f"{table}.{group.column}",
                    expected=NOUNS[kinds[group.column]],
                    found="no value that can be read as such",
                    remedy="Write the column in that form, or map another column with "
                    f"source.columns.{table}.",
                    keys=group.examples,
                ),
            )
            return True
    return False


def _repeats(con: Any, table: str, fields: Sequence[Field], config: Config) -> tuple[int, int]:
    """Identical order lines: (dropped, kept). With a line_id, a repeat cannot be real."""
    if table != "transactions":
        return 0, 0
    names = ", ".join(quote(field.column.name) for field in fields)
    numbered = any(f.column.name == "line_id" and not f.absent for f in fields)
    if config.source.drop_duplicates or numbered:
        before = _count(con, table)
        con.execute(
            f"DELETE FROM {table} WHERE _row IN (SELECT _row FROM {table} QUALIFY "
            f"row_number() OVER (PARTITION BY {names} ORDER BY _row) > 1)"
        )
        return before - _count(con, table), 0
    rows = con.execute(f"SELECT count(*) - count(DISTINCT hash({names})) FROM {table}").fetchall()
    return 0, int(rows[0][0])
