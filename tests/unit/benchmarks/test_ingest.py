"""The benchmark of the incremental store on a small shop."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ingest


@pytest.fixture(autouse=True)
def few_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ingest, "DAYS", 6)
    monkeypatch.setattr(ingest, "VISITS", 0.5)


def test_daily_ingests_make_the_store_of_one() -> None:
    once, daily = (ingest.measure(way, 600) for way in ("once", "daily"))
    assert once["sum"] == daily["sum"]
    # A file has the lines of one local day.
    assert once["sum"].count("Day(") == 6
    assert "2024-08-06" in once["sum"]
    # The file of the fourth of six days; the benchmark itself looks at the others.
    assert ingest.measure("corrected", 600)["sum"] == "2024-08-04"


@pytest.mark.slow
def test_both_snapshots_are_equal() -> None:
    ingest.measure("once", 600)
    raw, store = (ingest.measure(way, 600) for way in ("raw", "store"))
    assert raw["sum"] == store["sum"]
