"""The small shop, PostgreSQL, and servers that listen."""

from __future__ import annotations

from tests.contracts.test_server import folder
from tests.unit.serving.log.conftest import postgres_server, shop, url

__all__ = ["folder", "postgres_server", "shop", "url"]
