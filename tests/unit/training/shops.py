"""Small shops on disk for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.config import Config, validate

OFFERS = [
    {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}, "contact_cost": 0.1},
    {"coupon_id": "tote", "kind": "gift", "params": {"unit_cost": 3.0}, "contact_cost": 0.2},
]


def config_of(folder: Path, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "tiny",
        "source": {"kind": "files", "path": str(folder), "as_of": "2026-03-01"},
        "features": {"set": ["recency_days", "orders_total"]},
        "outcome": {"kind": "profit", "margin_rate": 0.4, "window_days": 14},
        "offers": OFFERS,
        "policy": {"budget": None},
        "training": {"learners": ["t"], "folds": 2, "threads": 1},
    }
    return validate(raw | sections)


def write(folder: Path, **tables: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder


def line(customer: str, order: str, at: str, amount: float, **more: Any) -> dict[str, Any]:
    return {
        "customer_id": customer,
        "order_id": order,
        "transacted_at": at,
        "amount": amount,
        "discount": 0.0,
        "coupon_id": None,
        **more,
    }


def exposure(number: int, customer: str, arm: str, at: str = "2026-01-10", **more: Any) -> Any:
    return {
        "exposure_id": f"e{number}",
        "customer_id": customer,
        "campaign_id": "jan",
        "assigned_at": at,
        "arm": arm,
        **more,
    }


def random_experiment(
    folder: Path, rows: int, seed: int = 3, effect: float = 0.0, shares: Any = (0.4, 0.3, 0.3)
) -> Path:
    """A wide experiment: features x0..x2, a given outcome, arms drawn with the given shares."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    arm = rng.choice(3, rows, p=shares)
    y = x[:, 0] + effect * (arm == 1) * (x[:, 1] > 0) + rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "exposure_id": [f"e{i}" for i in range(rows)],
            "customer_id": [f"k{i}" for i in range(rows)],
            "campaign_id": "one",
            "assigned_at": "2026-01-10",
            "arm": np.array(["control", "c5", "tote"])[arm],
            "gain": y,
            **{f"x{j}": x[:, j] for j in range(3)},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "exposures.parquet")
    return folder


def wide_config(folder: Path, **sections: Any) -> Config:
    return config_of(
        folder,
        features={"set": [], "given": ["x0", "x1", "x2"]},
        outcome={"kind": "column", "column": "gain", "value": 1.0},
        offers=[
            {"coupon_id": "c5", "kind": "message", "params": {}, "contact_cost": 0.05},
            {"coupon_id": "tote", "kind": "message", "params": {}, "contact_cost": 0.05},
        ],
        **sections,
    )
