"""`python -m features build` on each engine, from files to files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from features.__main__ import main
from features.outputs import parts_of
from tests.engines.conftest import OnEngine, shop

ZONE = "Europe/Berlin"
SET = ["recency_days", "spend_365d", "overdue_ratio", "category_favourite_365d", "offers_28d"]


def build(config: Path, out: Path, engine: str) -> pd.DataFrame:
    args = ["--config", str(config), "--out", str(out), "--set", f"engine={engine}"]
    assert main(["build", "--as-of", "2025-06-01", *args]) == 0
    return pd.read_parquet(out).sort_values("customer_id", ignore_index=True)


def test_a_build_from_files(
    engine: OnEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shop(ZONE)
    (tmp_path / "in").mkdir()
    for name in ("transactions", "exposures"):
        rows = getattr(own.tables, name).to_pyarrow()
        if name == "exposures":
            rows = rows.drop_columns(["assignment_prob", "cost"])
        pq.write_table(rows, tmp_path / "in" / f"{name}.parquet")
    raw = {
        "name": "parts",
        "source": {"kind": "files", "path": str(tmp_path / "in"), "max_bad_share": 0.5},
        "timezone": ZONE,
        "features": {"set": SET},
        "outcome": {"kind": "conversion"},
        "offers": [offer.model_dump() for offer in own.config.offers],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    want = build(tmp_path / "config.yaml", tmp_path / "want.parquet", "duckdb")
    found = build(tmp_path / "config.yaml", tmp_path / "found", engine.name)
    pd.testing.assert_frame_equal(found, want, check_exact=False, rtol=1e-9)
    assert len(want) > 15
    assert want["tier"].nunique() > 2
    if engine.name == "spark":
        for i, file in enumerate(sorted((tmp_path / "found").iterdir())):
            part = pq.read_table(file)
            assert set(parts_of(part["customer_id"].to_pandas())) <= {i}
            assert part.schema.metadata == pq.read_schema(tmp_path / "want.parquet").metadata
