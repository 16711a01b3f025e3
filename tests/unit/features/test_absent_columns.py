"""A column that the source lacks: its features are NULL and named, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features.build import build_features
from features.config import validate
from features.frozen import FrozenValues
from features.registry import CATALOGUE, COLUMNS
from features.sources import open_source

AS_OF = pd.Timestamp("2025-06-01")
LINES = pd.DataFrame(
    {
        "customer_id": ["A", "A", "A", "B"],
        "order_id": ["1", "2", "2", "3"],
        "transacted_at": pd.to_datetime(["2025-01-01", "2025-03-01", "2025-03-01", "2025-05-01"]),
        "amount": [10.0, 20.0, 5.0, 30.0],
        "product_id": ["P", "P", "Q", "R"],
        "category": ["x", "x", "y", "x"],
        "quantity": [1.0, 1.0, 1.0, 1.0],
        "channel": ["app", "store", "store", "app"],
        "payment_method": ["card", "alipay", "alipay", "card"],
        "coupon_id": [None, "c", "c", None],
    }
)


def build(folder: Path, lines: pd.DataFrame) -> tuple[pd.DataFrame, set[str]]:
    folder.mkdir(exist_ok=True)
    lines.to_parquet(folder / "transactions.parquet")
    config = validate(
        {
            "name": "absent",
            "source": {"kind": "files", "path": str(folder)},
            "outcome": {"kind": "conversion"},
            "offers": [{"coupon_id": "c", "kind": "fixed_off", "params": {"off": 1.0}}],
        }
    )
    spine = pd.DataFrame({"customer_id": ["A", "B"], "as_of": AS_OF})
    tables = open_source(config).tables()
    built = build_features(tables, spine, list(CATALOGUE), config, FrozenValues())
    tables.con.disconnect()
    return built.frame, set(built.missing)


@pytest.mark.parametrize("column", [name.removeprefix("transactions.") for name in COLUMNS])
def test_features_of_an_absent_column(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, missing = build(tmp_path / "whole", LINES)
    without, more = build(tmp_path / "without", LINES.drop(columns=column))
    gone = {n for n, f in CATALOGUE.items() if f"transactions.{column}" in f.needs}
    assert gone - missing == more - missing
    assert gone - missing, "no feature is known to need this column"
    assert without[list(gone)].isna().all(axis=None)
    kept = [name for name in CATALOGUE if name not in gone]
    pd.testing.assert_frame_equal(without[kept], whole[kept], check_exact=True)
    assert whole[list(gone - missing)].notna().any(axis=None)
