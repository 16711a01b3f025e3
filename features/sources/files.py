"""A folder of Parquet and CSV files: `<table>.parquet`, `<table>.csv`, or `<table>/` of parts; or
one such file, the transactions."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import ibis.expr.types as ir

from features.cleaning import Cleaned, unreadable
from features.config import Config
from features.contracts import CONTRACTS
from features.errors import ConfigError, DataError
from features.ingest import checked_tables, connect
from features.mapping import Raw
from features.parsing import literal, quote
from features.problems import Problems, fail
from features.sources.base import source
from features.store import Ingest, find, ingest
from features.tables import Tables

LOG = logging.getLogger("features.sources")
SUFFIXES = (".parquet", ".csv")
SEPARATORS = ",;\t|"
HEADER_BYTES = 1 << 16


@source("files")
class FilesSource:
    """`source.kind: files`. CSV files are UTF-8 with a header; the separator is , ; | or tab."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def tables(self, problems: Problems | None = None) -> Tables:
        """The checked tables of the folder `source.path`.

        The digest covers the bytes of the files and how the configuration maps them, so the same
        rows in another format have another digest. With `source.incremental` the transactions come
        from the store, which is brought up to date first; a check (`problems`) reads every file.
        Raises DataError, ConfigError.
        """
        config = self.config
        parts = self._parts(problems)
        if config.source.incremental and problems is None and "transactions" in parts:
            return self._stored(parts, list(CONTRACTS))[0]
        backend = connect(config)
        raws: dict[str, Raw] = {}
        for table, files in parts.items():
            try:
                raws[table] = read_raw(backend.con, table, files)
            except DataError as error:
                fail(problems, error)
        contents = {table: [_sha256(file) for file in files] for table, files in parts.items()}
        self._check_delivered_once(backend.con, parts, contents, problems)
        digest = _digest(contents, config)
        tables = checked_tables(backend, raws, config, digest=digest, problems=problems)
        _forget_csv_of(backend.con, parts)
        return tables

    def ingest(self) -> Ingest:
        """Bring the store of transactions up to date with the files.

        Raises DataError, ConfigError; the store is then what it was.
        """
        parts = self._parts(None)
        if "transactions" not in parts:
            raise DataError(
                str(self.config.source.path),
                expected="transactions",
                found="none",
                remedy="Only transactions are taken in; other tables are read where they are.",
            )
        return self._stored(parts, ["identities", "transactions"])[1]

    def _stored(self, parts: dict[str, list[Path]], only: Sequence[str]) -> tuple[Tables, Ingest]:
        """The tables in `only`, the transactions from the store; and what was taken in."""
        config, files = self.config, parts["transactions"]
        backend = connect(config)
        found = find(files, config)
        others = {table: own for table, own in parts.items() if table in only}
        contents = {
            t: [_sha256(f) for f in own] for t, own in others.items() if t != "transactions"
        }
        contents["transactions"] = list(found.sha256.values())
        self._check_delivered_once(backend.con, others, contents, None)
        # Whether ids need their source is for all tables to say.
        needed = parts if "identities" in parts else others
        raws = {
            t: read_raw(backend.con, t, own) for t, own in needed.items() if t != "transactions"
        }
        if "identities" in parts:
            raws["transactions"] = read_raw(backend.con, "transactions", files[-1:])
        taken: list[Ingest] = []

        def read(unread: Sequence[Path]) -> Raw:
            return read_raw(backend.con, "transactions", unread, part="taken_from")

        def take_in(identities: bool) -> tuple[Cleaned, ir.Table]:
            taken.append(ingest(backend, found, config, read, identities=identities))
            return taken[0].cleaned, taken[0].lines

        tables = checked_tables(
            backend, raws, config, digest=_digest(contents, config), take_in=take_in, only=only
        )
        _forget_csv_of(backend.con, parts)
        return replace(tables, store=taken[0].store), taken[0]

    def _parts(self, problems: Problems | None) -> dict[str, list[Path]]:
        """The files of each table that is there."""
        config = self.config
        _check_tables_named(config, problems)
        folder = _folder(config)
        parts = {"transactions": [folder]} if folder.is_file() else _find(folder, problems)
        if not parts.keys() & {"transactions", "exposures"}:
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise DataError(
                str(folder),
                expected="transactions or exposures, as .parquet, .csv or a folder of parts",
                found=there,
                remedy="Name the files after the tables.",
            )
        return parts

    def _check_delivered_once(
        self,
        con: Any,
        parts: dict[str, list[Path]],
        contents: dict[str, list[str]],
        problems: Problems | None,
    ) -> None:
        dropped = self.config.source.drop_duplicates
        once = {t: f for t, f in parts.items() if not (t == "transactions" and dropped)}
        _check_delivered_once(con, once, contents, problems)


def read_raw(
    con: Any,
    table: str,
    files: Sequence[Path],
    parquet: bool | None = None,
    part: str | None = None,
) -> Raw:
    """Make the files readable in the connection, all CSV columns as text, parts in name order.

    `parquet` says the format; without it the suffix does. `part` names a further column: the path
    of the file. Raises DataError for a file that is not of its format.
    """
    origin = str(files[0] if len(files) == 1 else files[0].parent)
    if files[0].suffix == ".parquet" if parquet is None else parquet:
        for file in files:
            if file.stat().st_size == 0:
                raise _empty(file)
        listed = ", ".join(literal(str(file)) for file in files)
        also = f", filename = {literal(part)}" if part else ""
        relation = f"read_parquet([{listed}], union_by_name = true, binary_as_string = true{also})"
        try:
            con.execute(f"DESCRIBE SELECT * FROM {relation}")
        except duckdb.Error as error:
            raise unreadable(origin, error) from error
        return Raw(relation, origin, part=part)
    rejected: list[str] = []
    named = [f", {literal(str(file))} AS {quote(part)}" if part else "" for file in files]
    for i, file in enumerate(files):
        loaded = f"_csv_{table}_{i}"
        _load_csv(con, file, loaded)
        # A line can be wrong in more than one way; it is one line.
        rejected.append(f"SELECT csv_line{named[i]} FROM {loaded}_bad GROUP BY line, csv_line")
    if len(files) == 1 and not part:
        relation = f"_csv_{table}_0"
    else:
        union = " UNION ALL BY NAME ".join(
            f"SELECT *{named[i]} FROM _csv_{table}_{i}" for i in range(len(files))
        )
        relation = f"_csv_{table}"
        con.execute(f"CREATE OR REPLACE VIEW {relation} AS {union}")
    bad = f"_bad_{table}"
    con.execute(f"CREATE OR REPLACE VIEW {bad} AS {' UNION ALL '.join(rejected)}")
    return Raw(relation, origin, csv=True, rejected=bad, part=part)


def forget_csv(con: Any) -> None:
    """Give back the memory of the CSV files as they came, once their tables are clean."""
    for kind, listed in (("VIEW", "duckdb_views"), ("TABLE", "duckdb_tables")):
        names = con.execute(
            f"SELECT {kind.lower()}_name FROM {listed}() "
            f"WHERE starts_with({kind.lower()}_name, '_csv_') "
            f"OR starts_with({kind.lower()}_name, '_bad_')"
        ).fetchall()
        for (name,) in names:
            con.execute(f"DROP {kind} {quote(name)}")


def _forget_csv_of(con: Any, parts: dict[str, list[Path]]) -> None:
    # To look for them takes longer than to take in a day of Parquet.
    if any(files[0].suffix == ".csv" for files in parts.values()):
        forget_csv(con)


def _load_csv(con: Any, file: Path, name: str) -> None:
    """Load a CSV file as text into the table `name`, its unusable lines into `<name>_bad`."""
    header, separator = _header(file)
    columns = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in header)
    try:
        # Temporary tables of DuckDB's reader: they must not exist before.
        con.execute(f"DROP TABLE IF EXISTS {name}_bad; DROP TABLE IF EXISTS {name}_scan")
        con.execute(
            f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM read_csv({literal(str(file))}, "
            f"columns = {{{columns}}}, header = true, auto_detect = false, "
            f"delim = {literal(separator)}, quote = '\"', escape = '\"', store_rejects = true, "
            f"rejects_table = '{name}_bad', rejects_scan = '{name}_scan', rejects_limit = 0)"
        )
    except duckdb.Error as error:
        raise unreadable(str(file), error) from error


def _header(file: Path) -> tuple[list[str], str]:
    """Column names and separator of a CSV file, from its first line."""
    with file.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    if not start.strip():
        raise _empty(file)
    try:
        first = start.removeprefix(b"\xef\xbb\xbf").splitlines()[0].decode("utf-8")
        if "\0" in first:
            raise ValueError("zero bytes")
    except ValueError as error:
        raise DataError(
            str(file),
            expected="CSV in UTF-8 with a header",
            found="bytes that are not UTF-8 text in the first line",
            remedy="Save the file as UTF-8.",
        ) from error
    separator = max(SEPARATORS, key=lambda mark: _outside_quotes(first, mark))
    names = next(csv.reader(io.StringIO(first), delimiter=separator), [])
    names = [name.strip() or f"column_{i}" for i, name in enumerate(names)]
    lower = [name.lower() for name in names]
    twice = [name for name in names if lower.count(name.lower()) > 1]
    if twice or not names:
        raise DataError(
            str(file),
            expected="a header with distinct column names",
            found=f"{', '.join(twice)} more than once" if twice else "none",
            remedy="Rename the columns.",
        )
    return names, separator


def _outside_quotes(line: str, mark: str) -> int:
    return sum(piece.count(mark) for piece in line.split('"')[::2])


def _empty(file: Path) -> DataError:
    return DataError(
        str(file),
        expected="a table",
        found="an empty file",
        remedy="Export the table again, or take the file away.",
    )


def _check_tables_named(config: Config, problems: Problems | None) -> None:
    for key, named in (("columns", config.source.columns), ("constants", config.source.constants)):
        for table in named:
            if table not in CONTRACTS:
                close = difflib.get_close_matches(table, CONTRACTS, n=1)
                fail(
                    problems,
                    ConfigError(
                        f"source.{key}.{table}",
                        expected=f"a table: {', '.join(CONTRACTS)}",
                        found=table,
                        remedy=f"Did you mean {close[0]}?"
                        if close
                        else "Mend the name of the table.",
                    ),
                )


def _folder(config: Config) -> Path:
    path = config.source.path
    if not path:
        raise ConfigError(
            "source.path",
            expected="a folder that holds transactions.parquet or .csv",
            found="nothing",
            remedy="Set it in the configuration, or with --set source.path=...",
        )
    folder = Path(path)
    # A single file is the table of transactions.
    if not folder.is_dir() and not (folder.is_file() and folder.suffix in SUFFIXES):
        raise DataError(
            str(folder),
            expected="a folder of tables, or one .parquet or .csv file of transactions",
            found="another file" if folder.exists() else "no such folder",
            remedy="Mend source.path; it is relative to the working directory.",
        )
    return folder


def _find(folder: Path, problems: Problems | None) -> dict[str, list[Path]]:
    """The files of each table; anything else in the folder is named in the log."""
    parts: dict[str, list[Path]] = {}
    for table in CONTRACTS:
        single = [folder / f"{table}{suffix}" for suffix in SUFFIXES]
        found = [[file] for file in single if file.is_file()]
        below = folder / table
        if below.is_dir():
            # A store of years has a file per day: text is quicker than paths.
            every = (f"{where}/{name}" for where, _, own in os.walk(below) for name in own)
            inside = [
                Path(file)
                for file in sorted(every, key=lambda file: file.split("/"))
                if file.endswith(SUFFIXES)
                and not file.rpartition("/")[2].startswith((".", "_"))
                and os.path.isfile(file)
            ]
            if len({f.suffix for f in inside}) > 1:
                fail(problems, _ambiguous(str(below), "parts as Parquet and as CSV"))
                continue
            if not inside:
                fail(
                    problems,
                    DataError(
                        str(below),
                        expected="parts that end in .parquet or .csv",
                        found="none",
                        remedy="Export the table again, or take the folder away.",
                    ),
                )
                continue
            found.append(inside)
        if len(found) > 1:
            names = " and ".join(str(files[0]) for files in found)
            fail(problems, _ambiguous(table, names))
            continue
        if found:
            parts[table] = found[0]
    other = [
        p.name
        for p in sorted(folder.iterdir())
        if not p.name.startswith((".", "_"))
        and not (p.stem in CONTRACTS and (p.suffix in SUFFIXES or p.is_dir()))
    ]
    if other:
        LOG.warning("%s: not a table, left alone: %s", folder, ", ".join(other))
    return parts


def _ambiguous(where: str, found: str) -> DataError:
    return DataError(
        where,
        expected="one file, or one folder of parts in one format",
        found=found,
        remedy="Take away the one that is out of date.",
    )


def _check_delivered_once(
    con: Any,
    parts: dict[str, list[Path]],
    contents: dict[str, list[str]],
    problems: Problems | None,
) -> None:
    """Two parts of one table with the same bytes are one delivery that came twice."""
    for table, files in parts.items():
        first: dict[str, Path] = {}
        twice: list[tuple[Path, Path]] = []
        for file, content in zip(files, contents[table], strict=True):
            if content not in first:
                first[content] = file
            elif _has_rows(con, file):
                twice.append((first[content], file))
        if twice:
            fail(
                problems,
                DataError(
                    f"{table}",
                    expected="each delivery once",
                    found=f"{len(twice)} files with the same bytes as another: every row of "
                    "theirs would count twice",
                    remedy="Take the copies away"
                    + (
                        ", or set source.drop_duplicates to drop equal lines."
                        if table == "transactions"
                        else "."
                    ),
                    keys=[f"{other.name} = {file.name}" for file, other in twice],
                ),
            )


def _has_rows(con: Any, file: Path) -> bool:
    if file.suffix == ".parquet":
        counted = f"SELECT count(*) FROM read_parquet({literal(str(file))})"
        try:
            return bool(con.execute(counted).fetchall()[0][0])
        except duckdb.Error:
            return False  # the reader says that it is damaged
    with file.open("rb") as stream:
        return len(stream.read(HEADER_BYTES).strip().splitlines()) > 1


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(contents: dict[str, list[str]], config: Config) -> str:
    whole = hashlib.sha256()
    how = [config.source.columns, config.source.constants, config.source.drop_duplicates]
    whole.update(json.dumps(how, sort_keys=True).encode())
    for table in sorted(contents):
        for content in contents[table]:
            whole.update(f"{table} {content}\n".encode())
    return whole.hexdigest()
