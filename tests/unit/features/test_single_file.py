"""A source that is one file of order lines, with days written as numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features.config import Config, validate
from features.errors import DataError
from features.sources import open_source

FRAME = pd.DataFrame(
    {
        "customer_id": [1, 1, 2],
        "date": [19970101, 19970118, 19970228],
        "dollar_value": [29.33, 29.73, 14.96],
    }
)
COLUMNS = {"transacted_at": "date", "order_id": "date", "amount": "dollar_value"}


def config_of(path: Path, **source: object) -> Config:
    return validate(
        {
            "name": "one",
            "source": {"kind": "files", "path": str(path), "columns": {"transactions": COLUMNS}}
            | source,
            "outcome": {"kind": "conversion"},
        }
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_one_file_is_the_transactions(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"purchases{suffix}"
    FRAME.to_parquet(path) if suffix == ".parquet" else FRAME.to_csv(path, index=False)
    tables = open_source(config_of(path)).tables()
    assert tables.transactions is not None
    assert tables.exposures is None
    lines = tables.transactions.to_pyarrow().to_pandas().sort_values(["customer_id", "order_id"])
    assert lines["customer_id"].tolist() == ["1", "1", "2"]
    assert lines["order_id"].tolist() == ["19970101", "19970118", "19970228"]
    days = pd.to_datetime(["1997-01-01", "1997-01-18", "1997-02-28"])
    assert lines["transacted_at"].tolist() == days.tolist()
    assert lines["amount"].tolist() == [29.33, 29.73, 14.96]


def test_a_number_that_is_no_day_is_set_aside(tmp_path: Path) -> None:
    bad = pd.concat([FRAME, FRAME.assign(date=[19970230, 1997, 852076800])])
    bad.to_parquet(tmp_path / "purchases.parquet")
    tables = open_source(config_of(tmp_path / "purchases.parquet", max_bad_share=0.5)).tables()
    assert tables.counts["transactions"] == {"read": 6, "kept": 3, "bad_time": 3}


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "purchases.txt").write_text("customer_id\n")
    with pytest.raises(DataError, match=r"one .parquet or .csv file.*found another file"):
        open_source(config_of(tmp_path / "purchases.txt")).tables()
