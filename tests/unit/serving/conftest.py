"""The small shop, made once."""

from __future__ import annotations

import pytest

from tests.unit.serving.small_shop import Shop, shared_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shared_shop(tmp_path_factory.mktemp)
