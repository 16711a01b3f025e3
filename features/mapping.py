"""Which raw column each canonical column comes from, by name or by the configuration."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from features.config import Config
from features.contracts import Column, TableContract
from features.errors import ConfigError, DataError
from features.parsing import is_nan, is_number, literal, present, quote
from features.problems import Problems, fail

LOG = logging.getLogger("features.sources")
# A column of text with at most this share of other text is still a column of numbers.
MOST_UNREADABLE = 0.01


@dataclass(frozen=True)
class Raw:
    """A table as it came: a relation of the connection, and where it came from.

    `relation` is a table, a view or a table function. `rejected` names a relation with a column
    `csv_line`: lines that could not be split into fields. `embedded`: data of ours, whose further
    columns are no surprise. `part` names a column that says which file a row is of (`rejected` has
    it too); with it, identical lines and the column source stay, because they are judged together
    with those of other files.
    """

    relation: str
    origin: str
    csv: bool = False
    rejected: str | None = None
    embedded: bool = False
    part: str | None = None


@dataclass(frozen=True)
class Field:
    """A canonical or named column, and where its values come from: a raw column, a constant of
    the configuration, or nowhere. `wrap` is applied to the raw column ({} stands for it)."""

    column: Column
    raw: str | None = None
    sql_type: str = ""
    constant: str | None = None
    wrap: str = "{}"

    @property
    def absent(self) -> bool:
        return self.raw is None and self.constant is None

    def sql(self, raw: str) -> str:
        """The value as it came, as an SQL expression; `raw` is the raw column's expression."""
        return literal(self.constant) if self.constant is not None else self.wrap.replace("{}", raw)


def named_columns(config: Config) -> tuple[str, ...]:
    """Further columns that the configuration names, in its order."""
    names = [*config.features.given]
    if config.outcome.kind == "column" and config.outcome.column:
        names.append(config.outcome.column)
    names += [config.experiment.cluster, *config.experiment.strata]
    return tuple(dict.fromkeys(names))


def find_fields(
    con: Any,
    contract: TableContract,
    types: Mapping[str, str],
    raw: Raw,
    config: Config,
    problems: Problems | None,
) -> list[Field] | None:
    """Which raw column each canonical or named column comes from."""
    mapping = config.source.columns.get(contract.name, {})
    constants = config.source.constants.get(contract.name, {})
    keeps = contract.name in ("exposures", "customers")
    named = [n for n in named_columns(config) if n not in contract.names] if keeps else []
    _check_names(contract, named, [*mapping, *constants])
    absent = {ours: theirs for ours, theirs in mapping.items() if theirs not in types}
    for ours, theirs in absent.items():
        fail(
            problems,
            DataError(
                f"{contract.name}.{ours}",
                expected=f"the column {theirs}, which source.columns maps to {ours}",
                found=f"the columns {', '.join(types) or 'none'} in {raw.origin}",
                remedy=_close(theirs, types) or "Mend source.columns.",
            ),
        )

    def find(column: Column) -> Field:
        if column.name in constants:
            return Field(column, sql_type="VARCHAR", constant=constants[column.name])
        theirs = mapping.get(column.name, column.name)
        if theirs not in types or column.name in absent:
            return Field(column)
        return Field(column, theirs, types[theirs])

    fields = [find(column) for column in contract.columns]
    lacking = [f.column.name for f in fields if f.column.required and f.absent]
    lacking = [name for name in lacking if name not in absent]
    if lacking:
        fail(
            problems,
            DataError(
                f"{contract.name}.{lacking[0]}",
                expected=f"the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}",
                found=f"the columns {', '.join(types) or 'none'} in {raw.origin}",
                remedy=(_close(lacking[0], types) + " " if _close(lacking[0], types) else "")
                + f"Name yours with source.columns.{contract.name}: "
                + f"{{{lacking[0]}: <your column>}}.",
            ),
        )
    if absent or lacking:
        return None
    for name in named:
        found = find(Column(name, "text", "named by the configuration"))
        if not found.absent:
            fields.append(_extra(con, found, raw, config))
    used = {*(f.raw for f in fields), raw.part}
    unused = [name for name in types if name not in used]
    if unused:
        level = logging.INFO if raw.embedded else logging.WARNING
        LOG.log(level, "%s: columns kept out: %s", contract.name, ", ".join(unused))
    return fields


def _check_names(contract: TableContract, named: Sequence[str], keys: Sequence[str]) -> None:
    for key in keys:
        if key not in contract.names and key not in named:
            raise ConfigError(
                f"source.columns.{contract.name}.{key}",
                expected=f"a column of {contract.name} ({', '.join(contract.names)}) or one that "
                "features.given, outcome.column or experiment names",
                found=key,
                remedy=_close(key, contract.names) or "Name one of these.",
            )


def _close(name: str, known: Iterable[str]) -> str:
    lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.75)
    return f"Did you mean {lower[found[0]]}?" if found else ""


def _extra(con: Any, field: Field, raw: Raw, config: Config) -> Field:
    """Give a named column a kind: a number or a category, the same in CSV and in Parquet.

    Text is a number when at least 99% of it reads as one (the rest is bad), or when all of
    it reads as true or false; a boolean is 0 or 1.
    """
    column = field.column
    if column.name in (config.experiment.cluster, *config.experiment.strata):
        return replace(field, column=replace(column, required=True))
    number = replace(column, kind="number")
    if config.outcome.kind == "column" and column.name == config.outcome.column:
        number = replace(number, required=True)
    if field.sql_type == "BOOLEAN":
        return Field(number, field.raw, "INTEGER", wrap="CAST({} AS INTEGER)")
    if number.required or field.constant is not None:
        return replace(field, column=number if number.required else column)
    if field.sql_type in ("FLOAT", "DOUBLE"):
        return replace(field, column=number, wrap=f"CASE WHEN NOT {is_nan('{}')} THEN {{}} END")
    if is_number(field.sql_type):
        return replace(field, column=number)
    if field.sql_type == "VARCHAR":
        expr = quote(str(field.raw))
        n, numbers, words = con.execute(
            f"SELECT count(*), count(TRY_CAST(trim({expr}) AS DOUBLE)), "
            f"count(*) FILTER (lower(trim({expr})) IN ('true', 'false')) "
            f"FROM {raw.relation} WHERE {present(expr, 'VARCHAR')}"
        ).fetchall()[0]
        if n and words == n:
            return Field(
                number, field.raw, "INTEGER", wrap="CAST(CAST(trim({}) AS BOOLEAN) AS INTEGER)"
            )
        if n and n - numbers <= MOST_UNREADABLE * n:
            gap = "CASE WHEN lower(trim({})) <> 'nan' THEN {} END"
            return replace(field, column=number, wrap=gap)
    return field
