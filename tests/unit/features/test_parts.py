"""A feature table as a folder of parts: all of it, once, a customer's rows together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError
from features.outputs import PARTS, parts_of, write_parts

METADATA = {"frozen": "{}", "missing": "region"}


def frame(rows: int = 400, shift: float = 0.0) -> pd.DataFrame:
    ids = [f"c{i % 150:03d}" for i in range(rows)]
    values = np.arange(rows, dtype=float) + shift
    return pd.DataFrame({"customer_id": ids, "value": values, "region": [None] * rows})


def test_the_parts_are_the_table(tmp_path: Path) -> None:
    write_parts(frame(), tmp_path / "out", METADATA)
    read = pd.read_parquet(tmp_path / "out").sort_values("value", ignore_index=True)
    assert read["region"].isna().all()
    assert read[["customer_id", "value"]].to_dict() == frame()[["customer_id", "value"]].to_dict()
    files = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in files] == [f"part-{i:02d}.parquet" for i in range(PARTS)]
    seen: set[str] = set()
    for file in files:
        part = pq.read_table(file)
        assert {k.decode(): v.decode() for k, v in part.schema.metadata.items()} == METADATA
        assert part.schema.equals(pq.read_schema(files[0]))
        own = set(part["customer_id"].to_pylist())
        assert not own & seen
        seen |= own
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_part_of_a_customer_never_changes() -> None:
    """Who reads parts by customer relies on it."""
    assert parts_of(pd.Series(["c000", "c001", "Ärzte"])).tolist() == [3, 15, 10]
    sizes = np.bincount(parts_of(pd.Series([f"c{i}" for i in range(16_000)])), minlength=PARTS)
    # Binomial(16000, 1/16): standard deviation 31.
    assert np.abs(sizes - 1000).max() < 5 * 31


def test_a_table_of_nobody_has_its_parts(tmp_path: Path) -> None:
    write_parts(frame(0), tmp_path / "out", METADATA)
    assert len(pd.read_parquet(tmp_path / "out")) == 0


def test_earlier_parts_are_replaced_as_a_whole(tmp_path: Path) -> None:
    write_parts(frame(), tmp_path / "out", METADATA, parts=20)
    write_parts(frame(shift=1000.0), tmp_path / "out", METADATA)
    assert len(list((tmp_path / "out").iterdir())) == PARTS
    assert pd.read_parquet(tmp_path / "out")["value"].min() == 1000.0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_other_things_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="used otherwise"):
        write_parts(frame(), tmp_path, METADATA)
    with pytest.raises(ConfigError, match="is a file"):
        write_parts(frame(), tmp_path / "notes.txt", METADATA)
    assert (tmp_path / "notes.txt").read_text() == "mine"
