"""The engine that a configuration names, and what is said where it cannot run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features import spark
from features.build import build_features
from features.engines import DuckDB, engine_of, on_engine
from features.errors import ConfigError
from features.frozen import FrozenValues
from features.tables import Tables
from tests.unit.features.conftest import make_config


def test_duckdb_is_the_default_and_takes_the_tables_as_they_are(example: Tables) -> None:
    assert on_engine(example, make_config()) is example
    assert isinstance(engine_of(example.con), DuckDB)


def test_without_pyspark_the_remedy_is_named(
    example: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "find_spec", lambda name: None)
    monkeypatch.setattr(spark, "connect", spark.connect.__wrapped__)
    spine = pd.DataFrame({"customer_id": ["A"], "as_of": ["2026-01-01"]})
    with pytest.raises(ConfigError, match="pyspark is not installed") as caught:
        build_features(example, spine, None, make_config(engine="spark"), FrozenValues())
    assert "requirements-spark.lock" in str(caught.value)


def test_java_is_looked_for_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "find_spec", lambda name: object())
    monkeypatch.setattr(spark.shutil, "which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert spark.unavailable() == "no Java"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/java").touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert spark.unavailable() is None
