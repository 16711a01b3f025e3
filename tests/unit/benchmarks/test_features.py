"""The ways from order lines to features agree on the numbers that they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import features
from benchmarks.report import peak_memory


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
