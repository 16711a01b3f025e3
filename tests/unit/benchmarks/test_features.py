"""The ways from order lines to features agree on the numbers that they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import features
from benchmarks.report import Options, peak_memory


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return features.make_lines(tmp_path_factory.mktemp("lines"), 2000)


def test_sql_pandas_and_ours_agree(
    lines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    results = {way: features.measure(way, lines) for way in features.WAYS}
    features.check(results)
    assert len(results["sql"]["sums"]) == 20  # the customer's id is no number
    assert results["sql"]["sums"].keys() == results["pandas"]["sums"].keys()
    assert results["sql"]["sums"].keys() == results["polars"]["sums"].keys()
    assert results["floor"]["sums"]["lines_read"] == 2000
    assert results["catalogue"]["sums"]["spend_365"] > 0
    assert set(results["catalogue"]["parts"]) == {
        "tables read and checked",
        "lines worked out, once for all builds",
        "population values fitted",
    }


def test_the_growth_is_per_million_lines() -> None:
    def measured(cpu: float, whole: float) -> dict[str, Any]:
        return {"cpu": cpu, "peak": 2.5e9, "whole": {"cpu": whole, "seconds": 3.0}}

    table = features.growth({1_000_000: measured(2.0, 6.0), 10_000_000: measured(19.0, 65.0)})
    numbers = [line.split() for line in table.splitlines() if line.startswith("  1")]
    assert numbers == [
        ["1,000,000", "2.0", "2.00", "6.0", "6.00", "3.0", "2.50"],
        ["10,000,000", "19.0", "1.90", "65.0", "6.50", "3.0", "2.50"],
    ]


@pytest.mark.parametrize(("rows", "sizes"), [(0, [1000, 3000]), (5000, [1000, 3000, 5000])])
def test_full_shows_the_growth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(features, "FOLDER", tmp_path)
    monkeypatch.setattr(features, "LINES", 1000)
    monkeypatch.setattr(features, "FULL", 3000)

    def apart(suite: str, way: str, lines: int, label: str) -> dict[str, Any]:
        made = pq.ParquetFile(tmp_path / f"lines-{lines}" / "transactions.parquet")
        assert made.metadata.num_rows == lines
        whole = {"cpu": 6.0, "seconds": 3.0}
        return {"seconds": 1.0, "cpu": 2.0, "peak": 1, "whole": whole, "parts": {}} | {
            "sums": {"features": 40.0}
        }

    monkeypatch.setattr(features, "apart", apart)
    peers, growth = features.run(Options(full=True, rows=rows)).split("Ours by the number of lines")
    assert "3,000 order lines of 150 customers" in peers
    found = [line.split()[0] for line in growth.splitlines() if line.startswith("  ")]
    assert found[2:] == [f"{n:,}" for n in sizes]


def test_a_disagreement_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"spend_90: pandas 11\.0, sql 10\.0"):
        features.check(
            {"sql": {"sums": {"spend_90": 10.0}}, "pandas": {"sums": {"spend_90": 11.0}}}
        )


def test_lines_are_the_same_every_time(lines: Path, tmp_path: Path) -> None:
    again = features.make_lines(tmp_path, 2000)
    assert again.read_bytes() == lines.read_bytes()


def test_one_way_prints_one_json_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert features.main(["--way", "sql", "--lines", "500"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seconds"] > 0
    assert result["peak"] <= peak_memory()
