"""SQL that reads one raw column of any type as a canonical kind.

A raw column is a DuckDB expression and its type. Nothing is converted with an error: what cannot
be read becomes NULL, and the caller tells NULL from unreadable by `present`.
"""

from __future__ import annotations

from features.config import ID_PATTERN
from features.contracts import Kind

INTEGERS = frozenset(
    {f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE")}
    | {"INTEGER", "UINTEGER"}
)
FLOATS = frozenset({"FLOAT", "DOUBLE"})
TIMES = frozenset(
    {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"}
)
# pandas holds times as nanoseconds, which end on 2262-04-11.
FIRST_TIME, LAST_TIME = "1970-01-01", "2262-04-11"
# Whole numbers beyond this are not exact in a float, so they cannot be an id.
EXACT = 2**53
MISSING = {"key": "missing_key", "text": "missing_key", "time": "missing_time"}


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def is_number(sql_type: str) -> bool:
    return sql_type in INTEGERS or sql_type in FLOATS or sql_type.startswith("DECIMAL")


def present(raw: str, sql_type: str) -> str:
    """True where the raw column holds anything: not NULL, and not blank text."""
    if sql_type == "VARCHAR":
        return f"({raw} IS NOT NULL AND trim({raw}) <> '')"
    return f"({raw} IS NOT NULL)"


def value(raw: str, sql_type: str, kind: Kind, *, csv: bool = False) -> str:
    """The canonical value, or NULL where there is none or it cannot be read."""
    if kind in ("key", "text"):
        return _text(raw, sql_type, csv)
    if kind == "time":
        return _time(raw, sql_type)
    if kind == "number":
        return _number(raw, sql_type)
    if kind == "boolean":
        return _boolean(raw, sql_type)
    if kind == "list" and sql_type.endswith("]"):
        return f"array_to_string({raw}, ',')"
    if kind == "json" and sql_type.startswith(("MAP", "STRUCT")):
        return f"CAST(to_json({raw}) AS VARCHAR)"
    return _text(raw, sql_type, csv=False)


def bad(name: str, raw: str, sql_type: str, kind: Kind, required: bool) -> list[tuple[str, str]]:
    """(reason, condition) pairs under which the row of this column is bad, in order.

    `name` is the canonical value as an SQL expression, `raw` the raw column.
    """
    found: list[tuple[str, str]] = []
    there = present(raw, sql_type)
    if required and kind in ("key", "text"):
        found.append(("missing_key", f"{name} IS NULL"))
    elif required:
        found.append((MISSING.get(kind, "missing_number"), f"NOT {there}"))
    if kind == "key":
        found.append(("bad_id", f"NOT regexp_full_match({name}, {literal(ID_PATTERN)})"))
        if sql_type in FLOATS or sql_type.startswith("DECIMAL"):
            found.append(("bad_id", f"NOT {_integral(raw)}"))
    elif kind == "time":
        found.append(("bad_time", f"{there} AND {name} IS NULL"))
        low, high = literal(FIRST_TIME), literal(LAST_TIME)
        found.append(("bad_time", f"NOT ({name} >= {low} AND {name} < {high})"))
    elif kind == "number":
        found.append(("bad_number", f"{there} AND {name} IS NULL"))
        found.append(("infinite_number", f"NOT isfinite({name})"))
    elif kind == "boolean":
        found.append(("bad_boolean", f"{there} AND {name} IS NULL"))
    return found


def is_nan(number: str) -> str:
    """True for NaN. DuckDB 2.0 answers isnan from the range in a Parquet file's statistics, which
    knows of no NaN; isfinite and the text look at the value."""
    return f"(NOT isfinite({number}) AND CAST({number} AS VARCHAR) = 'nan')"


def _integral(raw: str) -> str:
    number = f"CAST({raw} AS DOUBLE)"
    return f"(isfinite({number}) AND {number} = trunc({number}) AND abs({number}) < {EXACT})"


def _text(raw: str, sql_type: str, csv: bool) -> str:
    if sql_type in FLOATS or sql_type.startswith("DECIMAL"):
        # An integer column with gaps is often written as floats: 12.0 is the id 12.
        return (
            f"CASE WHEN {is_nan(f'CAST({raw} AS DOUBLE)')} THEN NULL WHEN {_integral(raw)} "
            f"THEN CAST(CAST({raw} AS BIGINT) AS VARCHAR) ELSE CAST({raw} AS VARCHAR) END"
        )
    if sql_type == "VARCHAR":
        text = rf"regexp_replace({raw}, '^([0-9]{{1,16}})\.0+$', '\1')" if csv else raw
        return f"CASE WHEN trim({raw}) = '' THEN NULL ELSE {text} END"
    return f"CAST({raw} AS VARCHAR)"


def _time(raw: str, sql_type: str) -> str:
    if sql_type in TIMES:
        # The session's zone is UTC, so a time with a zone becomes naive UTC.
        return f"TRY_CAST({raw} AS TIMESTAMP)"
    if sql_type == "VARCHAR":
        return (
            f"CASE WHEN regexp_full_match(trim({raw}), '[0-9]{{8}}') "
            f"THEN TRY_STRPTIME(trim({raw}), '%Y%m%d') "
            f"WHEN regexp_matches({raw}, '^\\s*[0-9]{{4}}') "
            f"THEN CAST(TRY_CAST(trim({raw}) AS TIMESTAMPTZ) AS TIMESTAMP) END"
        )
    if sql_type in INTEGERS:
        # A day as a number, 19970131; any other number is no time.
        return f"TRY_STRPTIME(CAST({raw} AS VARCHAR), '%Y%m%d')"
    return "CAST(NULL AS TIMESTAMP)"


def _number(raw: str, sql_type: str) -> str:
    if is_number(sql_type):
        return f"CAST({raw} AS DOUBLE)"
    if sql_type == "VARCHAR":
        return f"TRY_CAST(trim({raw}) AS DOUBLE)"
    return "CAST(NULL AS DOUBLE)"


def _boolean(raw: str, sql_type: str) -> str:
    if sql_type == "BOOLEAN":
        return raw
    if sql_type == "VARCHAR":
        # 1.0 and 0.0 is what a boolean column with gaps becomes in a CSV file.
        return f"TRY_CAST(regexp_replace(lower(trim({raw})), '^([01])\\.0$', '\\1') AS BOOLEAN)"
    if is_number(sql_type):
        return f"CASE {raw} WHEN 1 THEN TRUE WHEN 0 THEN FALSE END"
    return "CAST(NULL AS BOOLEAN)"
