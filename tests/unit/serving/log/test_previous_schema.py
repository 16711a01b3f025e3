"""From the schemas of releases before, with data in every table, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Float, Integer, MetaData, Table, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from serving.log.engine import REVISION, Log, open_log
from serving.log.migrate import check, downgrade, upgrade

# Of each release before, what this one adds to its tables.
ADDED: list[tuple[str, dict[str, set[str]]]] = [
    ("r0001", {"jobs": {"owner", "decided_at"}}),
    ("r0002", {}),
]
FINE = {
    ("campaign_budget", "state"): "active",
    ("decisions", "action"): "offer",
    ("decisions", "assignment_prob"): 0.25,
    ("refusals", "kind"): "erased",
    ("jobs", "state"): "succeeded",
}


def test_every_release_before_is_tried() -> None:
    assert [f"r{n:04}" for n in range(1, int(REVISION[1:]))] == [before for before, _ in ADDED]


def old_tables(connection: Connection) -> list[Table]:
    """The tables as they stand in the database, not as this release declares them."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def row(table: Table, number: int) -> dict[str, Any]:
    """A row with a value in every column."""
    kinds: tuple[tuple[type, Any], ...] = (
        (Boolean, True), (BigInteger, 10**13 + number), (Integer, number), (Float, 0.5),
    )  # fmt: skip
    found = {}
    for column in table.columns:
        value: Any = f"{column.name[:5]}-{number}"
        for kind, example in kinds:
            if isinstance(column.type, kind):
                value = example
                break
        found[column.name] = FINE.get((table.name, column.name), value)
    return found


def content(log: Log) -> dict[str, list[dict[str, Any]]]:
    with log.read() as connection:
        tables = old_tables(connection)
        return {t.name: [dict(r) for r in connection.execute(select(t)).mappings()] for t in tables}


@pytest.mark.parametrize(("release", "added"), ADDED)
def test_every_row_of_a_previous_schema_is_kept_up_and_down_and_up(
    url: str, release: str, added: dict[str, set[str]]
) -> None:
    log = open_log(url)
    assert upgrade(log, release) == release
    with log.write() as connection:
        for table in old_tables(connection):
            connection.execute(insert(table), [row(table, n) for n in range(3)])
    before = content(log)
    assert {len(rows) for rows in before.values()} == {3}
    assert len(before) == 10
    for _ in range(2):
        assert upgrade(log) == REVISION
        check(log)
        after = content(log)
        more = {name: set(after[name][0]) - set(rows[0]) for name, rows in before.items()}
        assert {name: columns for name, columns in more.items() if columns} == added
        kept = {
            name: [{k: v for k, v in r.items() if k in before[name][0]} for r in after[name]]
            for name in before
        }
        assert kept == before
        downgrade(log, release)
        assert content(log) == before
    log.close()


@pytest.mark.parametrize("release", [before for before, _ in ADDED])
def test_a_previous_release_writes_to_the_new_schema(url: str, release: str) -> None:
    log = open_log(url)
    upgrade(log, release)
    with log.read() as connection:
        tables = old_tables(connection)
    upgrade(log)
    with log.write() as connection:
        for table in tables:
            connection.execute(insert(table), row(table, 1))
    found = content(log)
    assert {t.name: len(found[t.name]) for t in tables} == {t.name: 1 for t in tables}
    log.close()


def test_the_database_itself_refuses_a_second_unfinished_job_of_a_campaign(log: Log) -> None:
    from serving.log.schema import jobs

    with log.write() as connection:
        for number, state in enumerate(("succeeded", "cancelled", "failed", "running")):
            connection.execute(
                insert(jobs), row(jobs, number) | {"campaign_id": "c", "state": state}
            )
    with pytest.raises(IntegrityError), log.write() as connection:
        connection.execute(insert(jobs), row(jobs, 9) | {"campaign_id": "c", "state": "queued"})
    with log.write() as connection:
        connection.execute(insert(jobs), row(jobs, 9) | {"campaign_id": "d", "state": "queued"})
