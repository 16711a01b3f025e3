"""What several contracts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.learner_cases import fitted, problem
from uplift.learners import causalml_forest


@pytest.fixture(scope="module")
def small_forests() -> Iterator[None]:
    """causalml's forests with fewer trees: the contract is the same, the time is not."""
    patch = pytest.MonkeyPatch()
    patch.setattr(causalml_forest, "TREES", 8)
    yield
    patch.undo()
    for cache in (problem, fitted):
        cache.cache_clear()
