"""From the raw tables of any source to checked tables: identities first, then each table."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from features.cleaning import Cleaned, clean
from features.config import CONTROL, Config
from features.contracts import CONTRACTS
from features.errors import DataError, InputError
from features.identities import check_used, resolve
from features.mapping import Raw, named_columns
from features.parsing import literal
from features.problems import Problems, fail
from features.tables import Tables


def connect(config: Config) -> Any:
    """A DuckDB backend of Ibis whose zone is UTC; `.con` is DuckDB's connection.

    What does not fit into `memory_gb` lies in a folder of its own where temporary files go (TMPDIR
    names another place), which DuckDB makes when it needs it and removes.
    """
    backend = ibis.duckdb.connect()
    folder = Path(tempfile.gettempdir(), f"persuadables-{uuid.uuid4().hex}")
    backend.con.execute("SET TimeZone = 'UTC'")
    backend.con.execute(f"SET memory_limit = '{config.memory_gb * 1000:.0f}MB'")
    backend.con.execute(f"SET temp_directory = {literal(str(folder))}")
    return backend


def checked_tables(
    backend: Any,
    raws: Mapping[str, Raw],
    config: Config,
    *,
    digest: str,
    simulated: bool = False,
    notes: Sequence[str] = (),
    problems: Problems | None = None,
    take_in: Callable[[bool], tuple[Cleaned, ir.Table]] | None = None,
    only: Collection[str] = tuple(CONTRACTS),
) -> Tables:
    """Clean every raw table and return them; the way of all sources that read foreign data.

    `take_in` makes the table transactions in place of cleaning its raw table; it is told whether
    there are identities to apply. Tables that are not in `only` are left alone.

    Raises DataError or ConfigError; with `problems`, collects them and returns what could be read.
    """
    con = backend.con
    cleaned: dict[str, Cleaned] = {}
    made: dict[str, ir.Table] = {}
    with_identities = False
    for name in ("identities", "transactions", "exposures", "customers", "events"):
        stored = take_in is not None and name == "transactions"
        if name not in only or (name not in raws and not stored):
            continue
        try:
            if take_in is not None and stored:
                result: Cleaned | None
                result, made[name] = take_in(with_identities)
            else:
                result = clean(
                    con, name, raws[name], config, identities=with_identities, problems=problems
                )
            if result is not None and name == "identities":
                with_identities = result.kept > 0 and resolve(con, raws, config, problems)
        except InputError as error:
            fail(problems, error)
            continue
        if result is not None:
            cleaned[name] = result
    if with_identities:
        check_used(con, [name for name in cleaned if name != "identities"], problems)
    if "exposures" in cleaned:
        _check_control(con, problems)
    _check_named(con, cleaned, config, problems)
    tables = {name: made[name] if name in made else backend.table(name) for name in cleaned}
    lines = cleaned.get("transactions")
    return Tables(
        con=backend,
        transactions=tables.get("transactions"),
        exposures=tables.get("exposures"),
        customers=tables.get("customers"),
        events=tables.get("events"),
        digest=digest,
        simulated=simulated,
        counts={name: result.counts for name, result in cleaned.items()},
        notes=tuple(notes),
        identical_lines=lines.identical if lines else 0,
        absent=_absent(lines),
    )


def _absent(lines: Cleaned | None) -> frozenset[str]:
    """Optional columns of the transactions that the source does not have."""
    if lines is None:
        return frozenset()
    optional = {c.name for c in CONTRACTS["transactions"].columns if not c.required}
    return frozenset(f"transactions.{name}" for name in optional - lines.given)


def _check_control(con: Any, problems: Problems | None) -> None:
    arms = dict(con.execute("SELECT arm, count(*) FROM exposures GROUP BY arm").fetchall())
    if arms and not arms.get(CONTROL):
        fail(
            problems,
            DataError(
                "exposures.arm",
                expected=f"rows with the arm {CONTROL}, which received no coupon",
                found=f"only {', '.join(sorted(arms))}",
                remedy="Effects are measured against control: add the customers who were held "
                "out, or map their arm to control.",
            ),
        )


def _check_named(
    con: Any, cleaned: Mapping[str, Cleaned], config: Config, problems: Problems | None
) -> None:
    """Every column that the configuration names must be in exposures or customers."""
    have: dict[str, set[str]] = {
        name: {row[0] for row in con.execute(f"DESCRIBE {name}").fetchall()}
        for name in ("exposures", "customers")
        if name in cleaned
    }
    everywhere = set().union(*have.values())
    units = (config.experiment.cluster, *config.experiment.strata)
    for name in named_columns(config) if have else ():
        outcome = config.outcome.kind == "column" and name == config.outcome.column
        if name in (have.get("exposures", set()) if outcome else everywhere):
            continue
        key = "outcome.column" if outcome else "features.given"
        if not outcome and name in units:
            key = "experiment"
        fail(
            problems,
            DataError(
                key,
                expected=f"a column {name} in exposures" + ("" if outcome else " or customers"),
                found=f"the columns {', '.join(sorted(everywhere))}",
                remedy=f"Mend {key}, or map your column to {name} with source.columns.",
            ),
        )
