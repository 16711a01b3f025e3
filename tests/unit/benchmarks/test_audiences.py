"""The suite of audience jobs, small: its own assertions hold, and the table says what was done."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.audiences import WAYS, do, prepare, table
from serving.audiences import Audience


def test_each_way_does_everyone_and_the_budget_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERSUADABLES_LOG_URL", raising=False)
    plan = Audience.plan
    prepare(tmp_path, 3_000)
    found = {}
    for way in WAYS:
        found[way] = do(tmp_path, 3_000, way)
        (tmp_path / "data" / "jobs" / "scoring" / "job-1").rename(tmp_path / way)
    assert Audience.plan is plan
    assert found["scores"]["offers"] == 0
    # A dry run foretells what is stored.
    assert found["dry"]["offers"] == found["stored"]["offers"] > 500
    assert 0.99 < found["stored"]["spent"] == found["dry"]["spent"] <= 1
    assert found["stored"]["log"] > 3 * found["dry"]["log"]
    text = table(3_000, found)
    assert f"{found['stored']['offers']:,} offers were stored" in text
    assert len(text.splitlines()) == 10
