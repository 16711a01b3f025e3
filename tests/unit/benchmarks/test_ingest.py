"""The benchmark of the incremental store on a small shop."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ingest


def test_daily_ingests_make_the_store_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ingest, "DAYS", 6)
    monkeypatch.setattr(ingest, "VISITS", 0.5)
    found = {way: ingest.measure(way, 600) for way in ("once", "daily", "raw", "store")}
    assert found["once"]["sum"] == found["daily"]["sum"]
    assert "2024-08-06" in found["once"]["sum"]
    assert found["raw"]["sum"] == found["store"]["sum"]
