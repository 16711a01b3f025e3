from __future__ import annotations

import pytest
from sqlalchemy import inspect, select

from features.errors import ConfigError
from serving.log.campaigns import Campaigns
from serving.log.engine import REVISION, open_log
from serving.log.migrate import check, downgrade, ensure_ready, newest, upgrade
from serving.log.schema import campaigns, metadata


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
