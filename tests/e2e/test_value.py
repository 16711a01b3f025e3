"""Order lines alone, from one file to a registered model of customer value that is served."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from features.config import load_config
from serving.load import resolve
from serving.population import from_source
from training.__main__ import main

START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 300


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of purchases whose customers differ in rate, and its configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rng = np.random.default_rng(1)
    customers = 400
    orders = rng.poisson(rng.gamma(0.8, 8, customers))
    who = np.repeat(np.arange(customers), orders)
    day = rng.integers(0, DAYS, len(who))
    pd.DataFrame(
        {
            "customer_id": who,
            "date": [f"{START + timedelta(days=int(d)):%Y%m%d}" for d in day],
            "paid": rng.gamma(4, 8, len(who)).round(2),
        }
    ).astype({"date": int}).to_parquet(tmp_path / "purchases.parquet")
    end = (START + timedelta(days=DAYS)).isoformat()
    raw = {
        "name": "values",
        "source": {
            "kind": "files",
            "path": "purchases.parquet",
            "columns": {
                "transactions": {"transacted_at": "date", "order_id": "date", "amount": "paid"}
            },
            "as_of": end,
            "complete_until": end,
        },
        "features": {"set": ["recency_days", "orders_30d"]},
        "targets": {"repurchase_days": 60, "clv_days": 60},
        "outcome": {"kind": "conversion"},
        "training": {
            "response_targets": ["response", "repurchase", "clv"],
            "folds": 2,
            "threads": 1,
        },
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(raw))
    return "values.yaml"


@pytest.mark.filterwarnings("ignore")  # MLflow warns of its own types at its import
def test_a_file_of_purchases_becomes_served_values(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", config]) == 0
    told = capsys.readouterr().out
    assert "no exposures: no effects, and no offers; left out: response" in told
    assert "Champion: values version 1" in told

    settings = load_config(config)
    model = resolve(settings)
    assert model.bundle.values is not None
    people = from_source(settings, model.bundle, settings.as_of(), threads=1)
    assert np.isfinite(people.values["clv"]).all()

    loaded = mlflow.pyfunc.load_model("models:/values@champion")
    schema = model.bundle.values.schema
    frame = pd.DataFrame(people.X.astype(np.float64), columns=list(schema.names))
    answered = loaded.predict(frame)
    for name in ("repurchase", "clv"):
        assert answered[name].to_numpy() == pytest.approx(people.values[name], rel=1e-6)

    runs = mlflow.search_runs(experiment_names=["values"])
    runs = runs[runs["tags.kind"] == "value model"].set_index("tags.target")
    assert set(runs.index) == {"repurchase", "clv"}
    for target, metric in (("repurchase", "log_loss_error"), ("clv", "rms_error")):
        row = runs.loc[target]
        served = row["tags.served"]
        assert served == model.bundle.values.models[target].kind
        assert row["tags.deciding_metric"] == metric
        assert row[f"metrics.{metric}"] == row[f"metrics.{served}_{metric}"]
        gains = [f"metrics.gain_over_{kind}_{metric}" for kind in ("naive", "lifetime")]
        for name in gains:
            assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"]
        assert (served == "lightgbm") == all(row[f"{name}_lo"] > 0 for name in gains)
