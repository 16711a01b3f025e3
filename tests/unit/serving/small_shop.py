"""A small shop on disk, a real bundle trained on it, and a scorer of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.build import build_features
from features.config import Config, validate
from features.frozen import fit_frozen
from features.sources import open_source
from features.spine import all_customers
from serving.load import LoadedModel, write_atomically
from serving.population import Population, from_source
from serving.salt import Salt
from serving.scorer import Scorer
from serving.snapshot import Snapshot, ensure_snapshot
from uplift.boosting import Binned, Settings
from uplift.bundle import Money, ScoringBundle
from uplift.data import Schema
from uplift.effects import BoosterTerm, EffectModel
from uplift.offers import parse_offers
from uplift.response import ResponseModel

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
SALT = Salt(b"a salt of the tests, of 32 bytes and more", "the tests")
CUSTOMERS = 300
FEATURES = ["recency_days", "order_days_365d", "spend_365d", "channel_favourite_365d"]
OFFERS: list[dict[str, Any]] = [
    {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}, "contact_cost": 0.02},
    {
        "coupon_id": "p10",
        "kind": "percent_off",
        "params": {"rate_off": 0.10, "max_off": 20, "min_spend": 30},
        "contact_cost": 0.02,
        "valid_days": 7,
    },
]
REFUSED, UNSUBSCRIBED, SILENT, CAPPED, NO_ORDERS = "c-000", "c-001", "c-002", "c-003", "c-299"


def write_tables(folder: Path) -> None:
    """Two years of orders, two waves, consent and events; the named customers are special."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    ids = [f"c-{i:03d}" for i in range(CUSTOMERS)]
    buyers = ids[:-1]
    n = 3000
    days = rng.integers(0, 700, n)
    pd.DataFrame(
        {
            "customer_id": rng.choice(buyers, n),
            "order_id": [f"o{i}" for i in range(n)],
            "transacted_at": pd.Timestamp("2025-12-31") - pd.to_timedelta(days, unit="D"),
            "amount": np.round(rng.gamma(2, 20, n), 2),
            "discount": np.round(rng.choice([0, 5.0], n), 2),
            "channel": rng.choice(["app", "store"], n),
        }
    ).to_csv(folder / "transactions.csv", index=False)
    # Three offers in four weeks, the newest on 30 December: two in the last seven days.
    capped = pd.DataFrame(
        {
            "customer_id": CAPPED,
            "campaign_id": ["w1", "w2", "w3"],
            "assigned_at": ["2025-12-10T00:00:00", "2025-12-28T06:00:00", "2025-12-30T00:00:00"],
            "arm": ["c5", "p10", "c5"],
        }
    )
    others = pd.DataFrame(
        {
            "customer_id": ids[4:],
            "campaign_id": "w0",
            "assigned_at": "2025-11-01T00:00:00",
            "arm": rng.choice(["control", "c5", "p10"], len(ids) - 4),
        }
    )
    pd.concat([capped, others]).to_csv(folder / "exposures.csv", index=False)
    pd.DataFrame(
        {
            "customer_id": ids,
            "marketing_consent": [i != REFUSED for i in ids],
        }
    ).assign(
        marketing_consent=lambda f: (
            f["marketing_consent"].astype(object).where(f["customer_id"] != SILENT, None)
        )
    ).to_csv(folder / "customers.csv", index=False)
    pd.DataFrame(
        {
            "event_id": ["e1", "e2"],
            "customer_id": [UNSUBSCRIBED, "c-010"],
            "type": "unsubscribed",
            "occurred_at": ["2025-12-01T00:00:00", "2026-01-02T00:00:00"],
        }
    ).to_csv(folder / "events.csv", index=False)


def make_config(tables: Path, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "spring",
        "source": {"kind": "files", "path": str(tables), "as_of": AS_OF.isoformat()},
        "features": {"set": FEATURES},
        "outcome": {"kind": "profit", "margin_rate": 0.4},
        "offers": OFFERS,
        "policy": {"budget": 120, "holdout_share": 0.1, "exploration_share": 0.1},
    }
    return validate(raw | sections)


def make_bundle(config: Config) -> ScoringBundle:
    """Boosters that learned made-up effects of the real features."""
    tables = open_source(config).tables()
    frozen = fit_frozen(tables, AS_OF, config)
    frame = build_features(
        tables, all_customers(tables, AS_OF, config), FEATURES, config, frozen
    ).frame
    schema = Schema.learn(frame)
    X = schema.encode(frame)
    rng = np.random.default_rng(11)
    binned = Binned(X, schema.categorical, threads=1)
    settings = Settings(rounds=12, num_leaves=5, min_child_samples=10, threads=1)
    rows = np.arange(len(X))
    seen = np.nan_to_num(X)

    def booster(target: np.ndarray, *, binary: bool = False) -> BoosterTerm:
        return binned.fit(rows, target, settings, binary=binary)

    def model(constant: list[float], *targets: np.ndarray) -> EffectModel:
        units = np.eye(len(targets))
        terms = tuple((booster(t), units[k]) for k, t in enumerate(targets))
        return EffectModel(np.array(constant), terms)

    overdue, frequent = seen[:, 0] / 50, seen[:, 1] / 3
    noise = rng.normal(0, 0.5, (len(X), 2))
    chance = booster((frequent + noise[:, 0] > 1).astype(float), binary=True)
    return ScoringBundle(
        schema=schema,
        offers=parse_offers(OFFERS),
        offered=(True, True),
        policy="t",
        effects=model([0.1, -0.2], overdue - 1 + noise[:, 0], frequent - 1 + noise[:, 1]),
        costs=model([0.3, 0.2], 1 + frequent / 2, 2 + noise[:, 0]),
        cost_calibration=np.tile([0.0, 1.0, 0.0], (2, 1)),
        response=ResponseModel(
            EffectModel(np.zeros(1), ((replace(chance, link="identity"), np.ones(1)),)), 1.1, -0.2
        ),
        money=Money("profit"),
        frozen=json.loads(frozen.to_json()),
        features={"names": FEATURES, "given": []},
        info={"learner": "t"},
        golden=X[:16],
    )


@dataclass(frozen=True)
class Shop:
    """Folder, configuration, verified model, population and snapshot of the small shop."""

    root: Path
    config: Config
    model: LoadedModel
    population: Population
    snapshot: Snapshot

    def scorer(self, **changes: Any) -> Scorer:
        return replace(
            Scorer(self.model, self.snapshot, self.config, SALT, clock=lambda: AS_OF), **changes
        )


def keep_bundle(bundle: ScoringBundle, root: Path, name: str) -> LoadedModel:
    """Save a bundle as the last good one of `data/`, as if the registry had given it."""
    home = root / "bundles" / name
    saved = bundle.save(home / "new")
    (home / "new").rename(home / saved.sha256)
    write_atomically(
        home / "current.json",
        {"name": name, "alias": "champion", "version": "3", "sha256": saved.sha256},
    )
    return LoadedModel(saved, name, "3", "champion", saved.sha256)


def make_shop(root: Path) -> Shop:
    write_tables(root / "tables")
    config = make_config(root / "tables")
    model = keep_bundle(make_bundle(config), root / "data", config.name)
    population = from_source(config, model.bundle, AS_OF, threads=1)
    snapshot = ensure_snapshot(config, model, SALT, root=root / "data", build=lambda _: population)
    return Shop(root, config, model, population, snapshot)


_shared: list[Shop] = []


def shared_shop(make_folder: Callable[[str], Path]) -> Shop:
    """One shop for all test modules of a run."""
    if not _shared:
        _shared.append(make_shop(make_folder("shop")))
    return _shared[0]
