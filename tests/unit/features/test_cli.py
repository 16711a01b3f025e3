"""`python -m features`: what it writes, what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.__main__ import main
from features.frozen import FrozenValues
from tests.unit.features.worked_example import (
    EXPECTED,
    EXPOSURES,
    OFFERS,
    SEGMENTS,
    TRANSACTIONS,
    ZONE,
)

CORE = 20


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worked example as a folder of CSV files, and the working directory."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "shop"
    data.mkdir()
    (data / "transactions.csv").write_text(TRANSACTIONS)
    (data / "exposures.csv").write_text(EXPOSURES)
    raw = {
        "name": "example",
        "source": {"kind": "files", "path": "shop", "as_of": "2026-01-01T00:00:00+08:00"},
        "outcome": {"kind": "conversion"},
        "timezone": ZONE,
        "offers": OFFERS,
    }
    path = tmp_path / "example.yaml"
    path.write_text(json.dumps(raw))
    return path


def test_build(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--config", str(config), "--out", "out/f.parquet"]) == 0
    printed = capsys.readouterr().out
    assert "9 customers, 20 features as of 2025-12-31T16:00:00Z: out/f.parquet" in printed
    frame = pd.read_parquet("out/f.parquet")
    assert frame.columns[:2].tolist() == ["customer_id", "as_of"]
    assert frame.columns[-2:].tolist() == ["tier", "lifecycle_stage"]
    assert frame.shape == (9, 2 + CORE + 2)
    assert frame["customer_id"].tolist() == list("ABCDEFGHI")
    # The build fits m on the same rows: 30, as the worked example has it.
    assert frame["overdue_ratio"].tolist() == pytest.approx(
        [float("nan") if v is None else v for v in EXPECTED["overdue_ratio"]], abs=5e-5, nan_ok=True
    )
    assert frame["tier"].tolist() == SEGMENTS["tier"]
    assert frame["lifecycle_stage"].tolist() == SEGMENTS["lifecycle_stage"]
    metadata = pq.read_metadata("out/f.parquet").metadata
    assert FrozenValues.from_json(metadata[b"frozen"].decode()).spend_high == 520
    assert metadata[b"missing"] == b""
    assert [p.name for p in Path("out").iterdir()] == ["f.parquet"]


def test_as_of_and_set(config: Path) -> None:
    arguments = ["build", "--config", str(config), "--out", "f.parquet"]
    arguments += ["--as-of", "2025-08-01T00:00:00Z", "--set", "features.set=[orders_total]"]
    assert main([*arguments, "--set", "timezone=UTC"]) == 0
    frame = pd.read_parquet("f.parquet")
    assert frame.columns.tolist() == [
        *("customer_id", "as_of", "orders_total", "tier", "lifecycle_stage")
    ]
    assert dict(zip(frame["customer_id"], frame["orders_total"], strict=True)) == {"A": 3, "E": 1}


def test_exposures_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wide experiment: no transactions, given columns, no tiers."""
    frame = pd.read_csv(io.StringIO(EXPOSURES))
    frame["history"] = range(len(frame))
    Path("shop/transactions.csv").unlink()
    frame.to_csv("shop/exposures.csv", index=False)
    arguments = ["build", "--config", str(config), "--out", "f.parquet"]
    assert main([*arguments, "--set", "features.given=[history]"]) == 0
    assert "NULL, because a table is absent: recency_days" in capsys.readouterr().out
    found = pd.read_parquet("f.parquet")
    assert found["history"].tolist() == [3, 6]
    assert found["offers_28d"].tolist() == [2, 1]
    assert found[["tier", "lifecycle_stage", "recency_days"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as-of", "2025-01-01"], r"before as_of 2025-01-01T00:00:00Z.*Give a later --as-of"),
        (["--as-of", "yesterday"], r"--as-of: expected an ISO 8601 time"),
        (["--set", "features.set=[orders_30]"], r"Did you mean orders_30d\?"),
        (["--set", "features.windows=3"], r"features\.windows"),
        (["--set", "source.path=nowhere"], r"nowhere"),
        (["--out", "shop"], r"--out: expected a file that can be written"),
    ],
)
def test_bad_input_is_one_message_and_code_2(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", "--config", str(config), "--out", "f.parquet", *arguments]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err)
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not Path("f.parquet").exists()


def test_a_missing_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["build", "--config", str(tmp_path / "no.yaml"), "--out", "f"]) == 2
    assert "expected a configuration file, found no such file" in capsys.readouterr().err


def test_check_runs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config)]) in (0, 2)
    assert "transactions: 27 rows read" in capsys.readouterr().out


def test_usage_errors_are_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["build"])
    assert stopped.value.code == 2
    assert "--config" in capsys.readouterr().err
