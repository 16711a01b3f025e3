"""Keys: a log that does not answer keeps nobody out whom the server knows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.log.engine import LogUnavailable
from serving.log.keys import make
from serving.log.writer import Expired, Stopped
from tests.unit.serving.answering import make_service
from tests.unit.serving.small_shop import Shop


@pytest.mark.parametrize("fault", [LogUnavailable("away"), Expired(), Stopped()])
def test_keys_that_cannot_be_read_again_are_those_of_the_last_reading(
    shop: Shop, tmp_path: Path, fault: Exception
) -> None:
    service = make_service(shop.scorer(), f"sqlite:///{tmp_path / 'log.db'}")
    with service.log.write() as connection:
        key = make(connection, ["score"], "a tool", 0, None)
    service.start()

    async def failing(*_: Any) -> Any:
        raise fault

    service.look = failing  # type: ignore[method-assign]
    service._keys_until = -1.0
    found = asyncio.run(service.key(f"Bearer {key}"))
    assert found is not None
    assert found.scopes == {"score"}
    assert asyncio.run(service.key("Bearer another")) is None
    service.close()
