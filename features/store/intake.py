"""Taking in files of transactions: new, changed and removed ones, each day by itself.

Only files that are new or changed are read. The days that their rows fall on, or fell on before,
are written again from the lines that the store has of other files and from the new ones; every
other day stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.cleaning import PART, Cleaned, clean
from features.config import Config
from features.contracts import SQL_TYPES, TRANSACTIONS
from features.errors import DataError
from features.localtime import local_day, utc_offsets
from features.mapping import Raw
from features.parsing import literal
from features.quarantine import BadRows
from features.store.bad import publish, write_bad
from features.store.days import COLUMNS, SHIFT, Rows, iso, write_days
from features.store.manifest import (
    KINDS,
    Manifest,
    TakenFile,
    locked,
    read_manifest,
    settings_digests,
    store_folder,
    write_manifest,
)
from features.store.snapshot import Store

# A file written so shortly before the manifest may have changed since within the same tick.
RACY_NS = 2_000_000_000
_TAKEN, _WHICH = "_store_taken", "_store_which"


@dataclass(frozen=True)
class Ingest:
    """What an ingest came to.

    `lines`: the table transactions. `files`: names of files of the source that are new, changed,
    moved, removed. `days` were written. `again` says why everything was done again, if it was.
    `bad`: rows set aside now, by reason, of `read` rows. `cleaned`: the counts of the whole store,
    as cleaning all files gives them.
    """

    store: Store
    lines: ir.Table
    files: Mapping[str, Sequence[str]]
    days: Sequence[str]
    again: str
    read: int
    bad: Mapping[str, int]
    cleaned: Cleaned


@dataclass(frozen=True)
class Found:
    """Files of a source beside what the store knows of them.

    `sha256` and `stats` (size, time of modification) by name, in the order of the files; `paths` by
    digest, one path each.
    """

    sha256: dict[str, str]
    stats: dict[str, tuple[int, int]]
    paths: dict[str, Path]

    def unread(self, known: Manifest | None) -> dict[str, Path]:
        """Contents that a state of the store does not have: digest -> path."""
        there = {file.sha256 for file in known.files.values()} if known else set()
        return {digest: path for digest, path in self.paths.items() if digest not in there}


def find(files: Sequence[Path], config: Config) -> Found:
    """Compare files with the store; a file of the same size and time is not read again.

    Raises:
        DataError: a file vanished, or the manifest of the store is damaged.
    """
    old = read_manifest(store_folder(config))
    root = Path(str(config.source.path))
    digests: dict[str, str] = {}
    stats: dict[str, tuple[int, int]] = {}
    paths: dict[str, Path] = {}
    # Text is quicker than paths, and there may be thousands of files.
    above = len((root / "x").as_posix()) - 1
    for file in files:
        name = file.name if file == root else file.as_posix()[above:]
        try:
            stat = os.stat(file)
            stats[name] = stat.st_size, stat.st_mtime_ns
            known = old.files.get(name) if old else None
            if (
                old is not None
                and known is not None
                and (known.size, known.time) == stats[name]
                and known.time < old.written - RACY_NS
            ):
                digests[name] = known.sha256
            else:
                with file.open("rb") as stream:
                    digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                str(file),
                expected="a file that can be read",
                found=str(error.strerror or error),
                remedy="Start again when the delivery is complete.",
            ) from error
        paths.setdefault(digests[name], file)
    return Found(digests, stats, paths)


@dataclass(frozen=True)
class _Taken:
    """Rows read just now, in the table _TAKEN: counts and days of each file, by its digest; and
    lines by day (since 1970)."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    days: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    given: frozenset[str] = frozenset()


def ingest(
    backend: Any,
    found: Found,
    config: Config,
    read: Callable[[Sequence[Path]], Raw],
    *,
    identities: bool,
) -> Ingest:
    """Bring the store up to date with its files, and make the view `transactions` of its lines.

    Args:
        backend: DuckDB backend of Ibis; with `identities`, has that table, clean and resolved.
        found: of `find`.
        read: makes files readable in the connection, with a column that says which file.

    Raises:
        DataError: a file cannot be used, or too many of its rows are bad; the store stays as it
            was.
        ConfigError: the store cannot be written.
    """
    folder = store_folder(config)
    with locked(folder):
        old = read_manifest(folder)
        people = _digest_of_identities(backend) if identities else ""
        cleaned = settings_digests(config, people, numbered=False)[0]
        known = old if old is not None and old.settings[0] == cleaned else None
        again = "" if known is old else "the settings or identities behind its lines changed"
        taken = _take(backend, found, known, config, read, identities=identities)
        files = _entries(found, known, taken)
        _check_one_kind(files, identities=identities)
        drop = config.source.drop_duplicates or any(
            "line_id" in file.given for file in files.values()
        )
        settings = settings_digests(config, people, numbered=drop)
        days = dict(known.days) if known else {}
        gone = [f for f in known.files.values() if f.sha256 not in found.paths] if known else []
        affected = {day for own in (*taken.days.values(), *(f.days for f in gone)) for day in own}
        if known is not None and settings != known.settings:
            again = "the settings behind its sums of orders changed"
            affected |= set(days)
        sizes = taken.sizes
        if rewritten := [folder / days[day].lines for day in sorted(affected & set(days))]:
            sizes = _add_stored(backend.con, rewritten, found)
        written = write_days(Rows(backend, _TAKEN, sizes), folder, config, drop=drop)
        backend.con.execute(f"DROP TABLE {_TAKEN}")
        days = {day: value for day, value in days.items() if day not in affected} | written
        bad_rows = _bad_rows(found, known, config)
        days = dict(sorted(days.items()))
        new = Manifest(settings, people, drop, time.time_ns(), files, days, bad_rows)
        _refuse_nothing(new, config)
        if old is None or replace(new, written=old.written) != old:
            write_manifest(new, folder)
            _sweep(folder, new.data_files | (old.data_files if old else set()))
        publish(folder, new.bad, config)
        store = Store(backend, folder, new)
        lines = store.make_view("transactions")
    bad = Counter[str]()
    for counts in taken.counts.values():
        bad.update(counts)
    n = bad.pop("read", 0)
    return Ingest(store, lines, _told(old, files), sorted(affected), again, n, bad, _counts(new))


def _digest_of_identities(backend: Any) -> str:
    rows = backend.con.execute("SELECT * FROM identities ORDER BY ALL").fetchall()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _take(
    backend: Any,
    found: Found,
    known: Manifest | None,
    config: Config,
    read: Callable[[Sequence[Path]], Raw],
    *,
    identities: bool,
) -> _Taken:
    """Clean the files that the store does not know, into _TAKEN."""
    con = backend.con
    unread = found.unread(known)
    if not unread:
        columns = [f"{name} {SQL_TYPES[TRANSACTIONS[name].kind]}" for name in COLUMNS]
        columns += ["_source VARCHAR", "_file VARCHAR", "_day BIGINT"]
        con.execute(f"CREATE OR REPLACE TEMP TABLE {_TAKEN} ({', '.join(columns)})")
        return _Taken()
    digests = {str(path): digest for digest, path in unread.items()}
    raw = read(list(unread.values()))
    cleaned = clean(con, "transactions", raw, config, identities=identities)
    assert cleaned is not None
    assert cleaned.parts is not None
    con.register(_WHICH, pa.table({"path": list(digests), "digest": list(digests.values())}))
    query = _taken_query(config.timezone, *_years(con, "transactions"))
    con.execute(f"CREATE OR REPLACE TEMP TABLE {_TAKEN} AS {query}")
    con.unregister(_WHICH)
    con.execute("DROP TABLE transactions")
    counted = con.execute(f"SELECT _file, _day, count(*) FROM {_TAKEN} GROUP BY 1, 2").fetchall()
    days: dict[str, tuple[str, ...]] = {}
    sizes = Counter[int]()
    for digest, day, n in sorted(counted):
        days[digest] = (*days.get(digest, ()), iso(day))
        sizes[day] += n
    # A file without rows is known too.
    counts: dict[str, dict[str, int]] = {digest: {"read": 0} for digest in unread}
    for path, n in cleaned.parts.items():
        counts[digests[path]] = dict(sorted(n.items()))
    return _Taken(counts, days, sizes, cleaned.given)


def _years(con: Any, table: str) -> tuple[int, int]:
    query = f"SELECT min(year(transacted_at)), max(year(transacted_at)) FROM {table}"
    first, last = con.execute(query).fetchall()[0]
    return first or 1970, last or 1970


@lru_cache(maxsize=16)
def _taken_query(zone: str, first_year: int, last_year: int) -> str:
    """The query of cleaned lines with their file and local day; to compile it takes longer than
    to run it over a day. Types of columns that only pass through do not matter."""
    passing = dict.fromkeys((*COLUMNS, "source", PART), "string")
    lines = ibis.table(passing | {"transacted_at": "timestamp(6)"}, name="transactions")
    which = ibis.table({"path": "string", "digest": "string"}, name=_WHICH)
    rows = lines.join(which, lines[PART] == which.path).select(
        *(lines[name] for name in COLUMNS),
        _source=lines.source,
        _file=which.digest,
        _day=local_day(lines.transacted_at, utc_offsets(zone, first_year, last_year)),
    )
    return str(ibis.to_sql(rows, "duckdb"))


def _entries(found: Found, known: Manifest | None, taken: _Taken) -> dict[str, TakenFile]:
    """The manifest's entries of the source's files, by name."""
    stored = {file.sha256: file for file in known.files.values()} if known else {}
    entries: dict[str, TakenFile] = {}
    for name, digest in sorted(found.sha256.items()):
        size, changed = found.stats[name]
        if digest in taken.counts:
            entries[name] = TakenFile(
                size,
                changed,
                digest,
                taken.counts[digest],
                taken.days.get(digest, ()),
                tuple(sorted(taken.given)),
            )
        elif (size, changed) == (stored[digest].size, stored[digest].time):
            entries[name] = stored[digest]
        else:
            entries[name] = replace(stored[digest], size=size, time=changed)
    return entries


def _check_one_kind(files: Mapping[str, TakenFile], *, identities: bool) -> None:
    """With identities, ids are read in one of two ways: by the column source, or without it."""
    without = [name for name, file in files.items() if "source" not in file.given]
    if identities and 0 < len(without) < len(files):
        raise DataError(
            "transactions.source",
            expected="the column source in every file or in none, because there are identities",
            found=f"{len(without)} of {len(files)} files without it",
            remedy="Give these files the column, empty where the id is the customer's.",
            keys=without,
        )


def _add_stored(con: Any, files: Sequence[Path], found: Found) -> Counter[int]:
    """Add the lines that the store has of these days, unless their file is gone; all lines by
    day."""
    listed = ", ".join(literal(str(file)) for file in files)
    there = ", ".join(map(literal, found.paths))
    con.execute(
        f"INSERT INTO {_TAKEN} SELECT {', '.join(COLUMNS)}, _source, _file, "
        f"(_order >> {SHIFT}) - 2 FROM read_parquet([{listed}]) WHERE _file IN ({there})"
    )
    return Counter(dict(con.execute(f"SELECT _day, count(*) FROM {_TAKEN} GROUP BY 1").fetchall()))


def _bad_rows(found: Found, known: Manifest | None, config: Config) -> str:
    """The data file of the bad rows of all files, in their place those of files just read."""
    labels: dict[str, str] = {}
    for name, digest in found.sha256.items():
        labels.setdefault(digest, name)
    before = known.files if known else {}
    stayed = {name: labels[f.sha256] for name, f in before.items() if f.sha256 in labels}
    read = {str(path): labels[digest] for digest, path in found.unread(known).items()}
    old = known.bad if known else ""
    if old and not read and all(stayed.get(name) == name for name in before):
        return old
    return write_bad(store_folder(config), old, stayed, read, config)


def _refuse_nothing(new: Manifest, config: Config) -> None:
    if not new.days:
        raise DataError(
            "transactions",
            expected="rows",
            found=f"an empty table ({config.source.path})",
            remedy="Export the table again, or take the file away.",
        )


def _sweep(folder: Path, names: set[str]) -> None:
    """Remove data files that neither this state nor the one before it names."""
    for kind in KINDS:
        for name in os.listdir(folder / kind):
            if f"{kind}/{name}" not in names:
                (folder / kind / name).unlink(missing_ok=True)


def _told(old: Manifest | None, files: Mapping[str, TakenFile]) -> dict[str, list[str]]:
    before = old.files if old else {}
    contents = {file.sha256 for file in before.values()}
    told: dict[str, list[str]] = {"new": [], "changed": [], "moved": [], "removed": []}
    for name, file in files.items():
        if name not in before:
            told["moved" if file.sha256 in contents else "new"].append(name)
        elif before[name].sha256 != file.sha256:
            told["changed"].append(name)
    told["removed"] = [name for name in before if name not in files]
    return told


def _counts(state: Manifest) -> Cleaned:
    """What cleaning all files comes to."""
    read, bad = 0, Counter[str]()
    for file in state.files.values():
        read += file.counts["read"]
        if len(file.counts) > 1:
            bad.update({reason: n for reason, n in file.counts.items() if reason != "read"})
    days = state.days.values()
    kept = sum(day.kept for day in days)
    return Cleaned(
        read,
        kept,
        tuple(BadRows(reason, "", n, ()) for reason, n in bad.most_common()),
        # Of a file that was delivered twice every line is a repeat.
        read - kept - bad.total(),
        sum(day.identical for day in days),
        frozenset(name for file in state.files.values() for name in file.given),
    )
