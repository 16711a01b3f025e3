"""Probabilities of churn from a file: whose they are, which are refused, and what they label."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.__main__ import main
from features.churn import NO_MODEL, read_churn
from features.errors import DataError
from tests.unit.features.worked_example import EXPOSURES, OFFERS, TRANSACTIONS, ZONE

AS_OF = datetime(2025, 12, 31, 16, tzinfo=UTC)
WARNED = {"any": [{"segment": "label", "in": ["churn_warning"]}]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, columns: dict[str, Any]) -> Path:
    frame = pd.DataFrame(columns)
    frame.to_csv(path, index=False) if path.endswith(".csv") else frame.to_parquet(path)
    return Path(path)


@pytest.mark.parametrize("name", ["churn.csv", "churn.parquet"])
def test_each_customer_gets_the_own_probability(name: str) -> None:
    path = write(name, {"customer_id": ["02", "1", "03"], "churn_probability": [0.2, 1.0, np.nan]})
    found = read_churn(path, pd.Series(["1", "2", "02", "03"]), AS_OF)
    np.testing.assert_array_equal(found, [1.0, np.nan, 0.2, np.nan])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"customer_id": ["a"], "churn": [0.5]}, "no churn_probability"),
        ({"customer_id": ["a", "a"], "churn_probability": [0.5, 0.6]}, "each customer once"),
        ({"customer_id": ["a"], "churn_probability": [1.01]}, "probabilities from 0 to 1"),
        ({"customer_id": ["a"], "churn_probability": ["high"]}, "probabilities from 0 to 1"),
        (
            {"customer_id": ["a"], "churn_probability": [0.5], "as_of": ["2025-12-30T16:00:00Z"]},
            "1 rows of another moment",
        ),
    ],
)
def test_other_files_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_churn(write("churn.csv", columns), pd.Series(["a"]), AS_OF)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="a readable Parquet or CSV file"):
        read_churn(Path("none.parquet"), pd.Series(["a"]), AS_OF)


def test_segments_and_audiences_follow_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """D is declining and warned of without a model; A is warned of from 0.6 on, B is not below."""
    Path("shop").mkdir()
    Path("shop/transactions.csv").write_text(TRANSACTIONS)
    Path("shop/exposures.csv").write_text(EXPOSURES)
    raw = {
        "name": "example",
        "source": {"kind": "files", "path": "shop", "as_of": AS_OF.isoformat()},
        "outcome": {"kind": "conversion"},
        "timezone": ZONE,
        "offers": OFFERS,
    }
    Path("c.yaml").write_text(json.dumps(raw))
    Path("f.yaml").write_text(json.dumps(WARNED))
    said = {"customer_id": ["A", "B", "D"], "churn_probability": [0.6, 0.5999, 0.01]}
    write("churn.parquet", {**said, "as_of": [AS_OF] * 3})
    for options, want in (([], "D"), (["--churn", "churn.parquet"], "AD")):
        assert main(["segments", "--config", "c.yaml", "--out", "out", *options]) == 0
        assert (NO_MODEL in capsys.readouterr().out) == (not options)
        frame = pd.read_parquet("out/segments.parquet")
        assert "".join(frame.loc[frame["churn_warning"], "customer_id"]) == want
        named = frame["labels"].str.split(",").map(lambda names: "churn_warning" in names)
        assert named.equals(frame["churn_warning"])
        ids = ["--filter", "f.yaml", "--out", "ids.csv"]
        assert main(["audience", "--config", "c.yaml", *ids, *options]) == 0
        met = Path("ids.csv").read_text().replace('"', "").split()
        assert met == ["customer_id", *want]
        assert main(["audience", "--config", "c.yaml", *ids[:2], "--preview", *options]) == 0
        assert f"{len(want)}  filter\n" in capsys.readouterr().out
    write("churn.parquet", {**said, "as_of": [datetime(2025, 12, 1, tzinfo=UTC)] * 3})
    assert main(["segments", "--config", "c.yaml", "--out", "out", "--churn", "churn.parquet"]) == 2
    assert "3 rows of another moment" in capsys.readouterr().err
