"""Bring the schema of the decision log to a revision: a step of the deployment, never of a start.

Only a new, empty SQLite file below `data/log` is made ready by the server itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.sql import text

from features.errors import ConfigError
from serving.log.engine import REVISION, Log, translated

FOLDER = Path(__file__).parent / "migrations"
# Any number will do that nothing else in the database locks by.
_LOCK = 3_177_204_391


def upgrade(log: Log, revision: str = "head") -> str:
    """Apply what is missing up to `revision`; returns the revision reached.

    One process at a time: SQLite holds its write lock, PostgreSQL an advisory one.
    """
    with translated(), log.writing.begin() as connection:
        log.patient(connection)
        if log.postgres:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        command.upgrade(_config(connection), revision)
    return str(log.revision())


def downgrade(log: Log, revision: str) -> None:
    """Take back revisions down to `revision` (`base`: all of them, and all their data)."""
    with translated(), log.writing.begin() as connection:
        log.patient(connection)
        command.downgrade(_config(connection), revision)


def check(log: Log) -> None:
    """Raise an error of Alembic's if the tables differ from what the release declares."""
    with log.writing.begin() as connection:
        command.check(_config(connection))


def newest() -> str:
    """The newest revision there is."""
    return str(ScriptDirectory.from_config(_config(None)).get_current_head())


def ensure_ready(log: Log, *, may_create: bool) -> None:
    """Check that the schema is this release's; with `may_create` make an empty one ready.

    Raises ConfigError otherwise.
    """
    found = log.revision()
    if found is None and may_create:
        found = upgrade(log)
    if found != REVISION:
        raise ConfigError(
            "the decision log",
            expected=f"the schema of revision {REVISION}",
            found="none" if found is None else found,
            remedy="Run the migration first: python -m serving migrate --config ...",
        )


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    attributes: dict[str, Any] = config.attributes
    attributes["connection"] = connection
    return config
