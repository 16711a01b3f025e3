from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.sql import text

from features.errors import ConfigError
from serving.__main__ import main
from serving.log.campaigns import Campaigns
from serving.log.engine import REVISION, VARIABLE, open_log
from serving.log.migrate import check, downgrade, ensure_ready, newest, upgrade
from serving.log.schema import campaigns, metadata
from tests.unit.serving.log.conftest import new_database


def test_the_release_works_with_the_newest_revision() -> None:
    assert newest() == REVISION


def test_up_down_and_up_again_with_data(url: str) -> None:
    log = open_log(url)
    assert log.revision() is None
    assert upgrade(log) == REVISION
    check(log)  # the tables are what the release declares
    with log.write() as connection:
        assert Campaigns(log).create(connection, "c", "{}", 5, 0)
    assert upgrade(log) == REVISION  # nothing to do keeps the data
    with log.read() as connection:
        assert connection.execute(select(campaigns.c.campaign_id)).scalars().all() == ["c"]
    downgrade(log, "base")
    with log.read() as connection:
        assert not set(inspect(connection).get_table_names()) & set(metadata.tables)
    assert upgrade(log) == REVISION
    check(log)
    log.close()


def test_a_schema_that_is_missing_or_unknown_is_told(url: str) -> None:
    log = open_log(url)
    with pytest.raises(ConfigError, match=r"found none.*python -m serving migrate"):
        ensure_ready(log, may_create=False)
    ensure_ready(log, may_create=True)
    with log.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(ConfigError, match="found r9999"):
        ensure_ready(log, may_create=True)
    log.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("mysql://a:secret@b/c", "starts with sqlite"), ("secret nonsense", "a database URL")],
)
def test_a_wrong_url_is_told_without_its_secrets(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        open_log(wrong)
    assert "secret" not in str(error.value)


def test_a_password_never_stands_in_a_text() -> None:
    log = open_log("postgresql://scorer:hunter2@localhost/none")
    assert "hunter2" not in repr(log) + log.place


@pytest.mark.parametrize(
    "arguments",
    [("migrate",), ("keys", "list"), ("export", "--out", "out"), ("purge",), ("jobs",), ("api",)],
    ids=lambda a: a[0],
)
def test_a_database_that_is_away_is_one_message_without_a_password(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "postgresql://scorer:hunter2@localhost:1/none")
    Path("c.yaml").write_text(
        "name: spring\nsource: {kind: files, path: none}\noutcome: {kind: conversion}\n"
    )
    command, *rest = arguments
    port = ["--port", "0"] if command == "api" else []
    # `keys` takes its configuration before its own subcommand
    assert main([command, "--config", "c.yaml", *port, *rest]) == 2
    said = capsys.readouterr().err
    assert "the decision log: expected a database that answers, found connection" in said
    assert "scorer:***@localhost:1/none" in said
    assert "hunter2" not in said
    assert "Traceback" not in said


def test_work_on_whole_tables_may_take_long_and_requests_may_not(postgres_server: str) -> None:
    log = open_log(new_database(postgres_server))
    with log.read() as connection:
        log.patient(connection)
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"
    with log.read() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "15s"
    log.close()
