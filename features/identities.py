"""Identities: ids of several systems become one customer, before anything else is read.

A row (source, source_customer_id) -> customer_id says who an id of a system is. A customer_id that
is itself such an id, written source:id, is followed to its end (a chain). Where a table has no
column source, its ids are matched by the id alone, so ids of all systems and customers share one
name space and a plain customer_id is followed too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from features.config import Config
from features.contracts import CONTRACTS
from features.errors import MAX_KEYS, DataError
from features.mapping import Field, Raw
from features.problems import Problems, fail, warn

CHAIN_SHOWN = 6


def resolve(
    con: Any, raws: Mapping[str, Raw], config: Config, problems: Problems | None = None
) -> bool:
    """Check the clean table `identities` and follow its chains; whether it can be applied.

    Reports rows that contradict each other, chains and cycles, with counts and examples.

    Raises:
        DataError: contradictions or a cycle, unless `problems` collects.
    """
    sourceless = [
        name
        for name, raw in raws.items()
        if name != "identities" and not _has_source(con, raw, name, config)
    ]
    wrong = _contradictions(con) or (_ambiguous(con, sourceless) if sourceless else None)
    if wrong is None:
        _links(con, "_links", plain=bool(sourceless))
        wrong = _follow(con, sourceless, problems)
    if wrong is not None:
        fail(problems, wrong)
        return False
    if not sourceless:
        _overlap(con, problems)
    con.execute(
        "CREATE OR REPLACE TABLE identities AS SELECT i.* REPLACE "
        "(coalesce(e.target, i.customer_id) AS customer_id) "
        "FROM identities i LEFT JOIN _ends e ON e.key = i.customer_id"
    )
    return True


def identify(fields: Sequence[Field]) -> list[str]:
    """The query steps that put the customers of `identities` in place of the source's ids.

    An id that no row names becomes source:id, and stays as it is without a source.
    """
    by_source = any(f.column.name == "source" and not f.absent for f in fields)
    came = "coalesce(v.source || ':' || v.customer_id, v.customer_id)"
    return [
        f"_map AS (SELECT key, min(customer_id) AS customer_id FROM ({_keys(not by_source)}) "
        "GROUP BY key)",
        f"_identified AS (SELECT v.* REPLACE (coalesce(m.customer_id, {came}) AS customer_id) "
        f"FROM _valued v LEFT JOIN _map m ON m.key = {came})",
    ]


def report_sources(
    con: Any, table: str, fields: Sequence[Field], identities: bool, problems: Problems
) -> None:
    """What the column source of a clean table says: ids without identity, ids of two systems."""
    if not any(f.column.name == "source" and not f.absent for f in fields):
        return
    if identities:
        rows = con.execute(
            f"SELECT source, count(*), list_sort(list(DISTINCT customer_id))[:{MAX_KEYS}], "
            f"count(DISTINCT customer_id) FROM {table} t WHERE starts_with(customer_id, source || "
            "':') AND NOT EXISTS (SELECT 1 FROM identities i WHERE i.customer_id = t.customer_id) "
            "GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
        known = {row[0] for row in con.execute("SELECT DISTINCT source FROM identities").fetchall()}
        for source, n, examples, ids in rows:
            unknown = "" if source in known else f"; identities has no source {source}"
            problems.add(
                "note" if source in known else "warning",
                f"{table}.source {source}",
                f"{n} rows of {ids} ids that identities does not name are customers of their own "
                f"(for example {', '.join(examples)}){unknown}",
            )
        return
    n, examples = con.execute(
        f"SELECT count(*), list_sort(list(customer_id))[:{MAX_KEYS}] FROM (SELECT customer_id FROM "
        f"{table} GROUP BY 1 HAVING count(DISTINCT source) > 1)"
    ).fetchall()[0]
    if n:
        problems.add(
            "warning",
            f"{table}.source",
            f"{n} customer ids stand in several sources and are read as one customer each (for "
            f"example {', '.join(examples)}); if they are different people, add a table identities",
        )


def check_used(con: Any, tables: Sequence[str], problems: Problems | None) -> None:
    """Report identities of which no customer stands in any other table."""
    used = " OR ".join(f"customer_id IN (SELECT customer_id FROM {name})" for name in tables)
    if not tables or con.execute(f"SELECT count(*) FROM identities WHERE {used}").fetchall()[0][0]:
        return
    rows = con.execute("SELECT source_customer_id FROM identities LIMIT 5").fetchall()
    fail(
        problems,
        DataError(
            "identities.source_customer_id",
            expected="ids that stand in the other tables",
            found="none of them there, so the table changes nothing",
            remedy="Mend its columns source and source_customer_id, or take the file away.",
            keys=[row[0] for row in rows],
        ),
    )


def _has_source(con: Any, raw: Raw, table: str, config: Config) -> bool:
    if "source" not in CONTRACTS[table].names:
        return True
    if "source" in config.source.constants.get(table, {}):
        return True
    name = config.source.columns.get(table, {}).get("source", "source")
    rows = con.execute(f"DESCRIBE SELECT * FROM {raw.relation}").fetchall()
    return any(str(row[0]) == name for row in rows)


def _contradictions(con: Any) -> DataError | None:
    rows = con.execute(
        "SELECT source || ':' || source_customer_id, count(*), "
        "string_agg(DISTINCT customer_id, ' and ' ORDER BY customer_id) FROM identities "
        "GROUP BY source, source_customer_id HAVING count(DISTINCT customer_id) > 1 ORDER BY 1"
    ).fetchall()
    if not rows:
        return None
    return DataError(
        "identities",
        expected="one customer_id for each source and source_customer_id",
        found=f"{sum(row[1] for row in rows)} rows of {len(rows)} ids that contradict each other",
        remedy="Keep one row of each.",
        keys=[f"{key}: {customers}" for key, _, customers in rows[:MAX_KEYS]],
    )


def _ambiguous(con: Any, sourceless: Sequence[str]) -> DataError | None:
    rows = con.execute(
        "SELECT source_customer_id, count(*) OVER () FROM identities GROUP BY 1 "
        f"HAVING count(DISTINCT customer_id) > 1 ORDER BY 1 LIMIT {MAX_KEYS}"
    ).fetchall()
    if not rows:
        return None
    return DataError(
        "identities.source_customer_id",
        expected=f"one customer per id, because {' and '.join(sourceless)} without a column source "
        "can be matched by the id alone",
        found=f"{rows[0][1]} ids that mean different customers in different sources",
        remedy="Give the table a column source.",
        keys=[row[0] for row in rows],
    )


def _keys(plain: bool) -> str:
    """A query of (key, customer_id): what a system's id is called, and whose it is."""
    named = "SELECT source || ':' || source_customer_id AS key, customer_id FROM identities"
    return named + (
        " UNION SELECT source_customer_id, customer_id FROM identities" if plain else ""
    )


def _links(con: Any, table: str, plain: bool) -> None:
    """A table (key -> target), as the rows say it; rows that name themselves end there."""
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT key, min(customer_id) AS target FROM "
        f"({_keys(plain)}) WHERE key <> customer_id GROUP BY key"
    )


def _follow(con: Any, sourceless: Sequence[str], problems: Problems | None) -> DataError | None:
    """Make _ends (key -> the last target) of _links by doubling; the error if some never end."""
    con.execute("CREATE OR REPLACE TEMP TABLE _ends AS SELECT * FROM _links")
    onward = "FROM _ends WHERE target IN (SELECT key FROM _links)"
    rows, some = con.execute(
        "SELECT count(*), min(source || ':' || source_customer_id) FROM identities "
        "WHERE customer_id IN (SELECT key FROM _links) "
        "AND customer_id NOT IN (source_customer_id, source || ':' || source_customer_id)"
    ).fetchall()[0]
    left = con.execute(f"SELECT count(*) {onward}").fetchall()[0][0]
    if not left:
        return None
    # After k rounds a link spans 2^k steps, and no chain is longer than the links that lead on.
    for _ in range(left.bit_length() + 1):
        con.execute(
            "CREATE OR REPLACE TEMP TABLE _ends AS SELECT a.key, coalesce(b.target, a.target) AS "
            "target FROM _ends a LEFT JOIN _ends b ON b.key = a.target"
        )
        left = con.execute(f"SELECT count(*) {onward}").fetchall()[0][0]
        if not left:
            warn(
                problems,
                "identities.customer_id",
                f"{rows} rows lead to an id that leads on to another customer; the last one is "
                f"taken (for example {_chain(con, some, '_links')})",
            )
            return None
    keys = [row[0] for row in con.execute(f"SELECT key {onward} ORDER BY key LIMIT 5").fetchall()]
    remedy = "Take away the row that points back."
    if sourceless:
        remedy += (
            " If ids of a system only look like those of customers, say whose they are: give "
            f"{' and '.join(sourceless)} a column source, empty where the id is the customer's."
        )
    return DataError(
        "identities.customer_id",
        expected="ids that lead to a customer",
        found=f"{left} ids in a cycle or on the way into one: {_chain(con, keys[0], '_links')}",
        remedy=remedy,
        keys=keys,
    )


def _chain(con: Any, key: str, links: str) -> str:
    """`a -> b -> c`, by the rows as they stand."""
    seen = [key]
    while len(seen) < CHAIN_SHOWN:
        found = con.execute(f"SELECT target FROM {links} WHERE key = ?", [seen[-1]]).fetchall()
        if not found:
            return " -> ".join(seen)
        seen.append(str(found[0][0]))
        if seen[-1] in seen[:-1]:
            return " -> ".join(seen)
    return " -> ".join([*seen, "..."])


def _overlap(con: Any, problems: Problems | None) -> None:
    """Warn of customers whose id is also an id of a system that means somebody else."""
    n, examples = con.execute(
        "WITH o AS (SELECT DISTINCT a.customer_id AS id FROM identities a JOIN identities b "
        "ON b.source_customer_id = a.customer_id AND b.customer_id <> a.customer_id) "
        f"SELECT count(*), list_sort(list(id))[:{MAX_KEYS}] FROM o"
    ).fetchall()[0]
    if not n:
        return
    _links(con, "_plain_links", plain=True)
    shown = _chain(con, examples[0], "_plain_links")
    steps = shown.split(" -> ")
    kind = "a cycle: " if steps[-1] in steps[:-1] else ""
    warn(
        problems,
        "identities.customer_id",
        f"{n} customer ids are also ids of a system that stand for another customer (for example "
        f"{', '.join(examples)}; {kind}{shown}). They are read as customers; if they are accounts "
        "that were merged, write customer_id as source:id",
    )
