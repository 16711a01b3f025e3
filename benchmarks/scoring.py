"""Scoring a population: from a file of features to the decisions file, beside plain LightGBM.

60 features, five arms and the boosters of an ensemble as trainings serve it, saved and loaded as a
verified bundle. `python -m serving score --features FILE` reads, checks, predicts, decides under
a budget and writes; what it is measured against reads the same file and does nothing but predict
with the very same boosters, each once. Both use the threads that LightGBM takes by itself, each
in a process of its own, so that its peak memory is its own.

Usage: python -m benchmarks --only scoring [--full] [--rows N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.report import Options, apart, peak_memory, text_table
from benchmarks.scale import ARMS, FEATURES, SEED, experiment
from features.config import Config, load_config
from serving.load import LoadedModel
from serving.population import from_features
from serving.salt import SIMULATED, Salt
from serving.score import check_out, write_decisions
from training.fit import LEAVES_OF_ROWS, TREES
from uplift.boosting import Binned, Settings
from uplift.bundle import Money, ScoringBundle, load_bundle
from uplift.costs import calibrate_costs, fit_costs
from uplift.data import draw_folds
from uplift.effects import BoosterTerm
from uplift.learners import Fitted, make_learner
from uplift.nuisances import prepare
from uplift.offers import parse_offers
from uplift.response import ResponseTerm, fit_response

CUSTOMERS, FULL_CUSTOMERS = 50_000, 1_000_000
LEARNED, FOLDS = 20_000, 3
MEMBERS = ("s", "x", "r", "dr")
CONTACT, OFF = 0.1, 2.0
# Per customer; sending everything costs about 1.
BUDGET = 0.25
NAMES = [f"x{j}" for j in range(FEATURES)]
COUPONS = [f"c{k}" for k in range(1, ARMS + 1)]
OFFERS = [
    {"coupon_id": c, "kind": "fixed_off", "params": {"off": OFF}, "contact_cost": CONTACT}
    for c in COUPONS
]


def configuration(folder: Path, customers: int) -> Config:
    """The campaign: a binding budget, holdout and exploration."""
    path = folder / "scoring.yaml"
    share = 1 / (ARMS + 1)
    path.write_text(
        yaml.safe_dump(
            {
                "name": "scoring",
                "source": {"kind": "files", "path": str(folder), "as_of": "2026-01-01T00:00:00Z"},
                "features": {"set": [], "given": NAMES},
                "outcome": {"kind": "column", "column": "y", "window_days": 14, "value": 1.0},
                "experiment": {"assignment": dict.fromkeys(["control", *COUPONS], share)},
                "currency": "EUR",
                "offers": OFFERS,
                "policy": {
                    "budget": BUDGET * customers,
                    "holdout_share": 0.1,
                    "exploration_share": 0.02,
                },
                "contact": {"assume_consent": True},
            }
        )
    )
    return load_config(str(path), [])


def make_bundle(folder: Path, rows: int | None = None) -> ScoringBundle:
    """An ensemble, cost and response models of an experiment of so many rows (default: LEARNED),
    saved below a folder."""
    learned = rows or LEARNED
    data = experiment(learned)
    rng = np.random.default_rng(SEED)
    redeemed = rng.random(learned) < 1 / (1 + np.exp(1 - data.X[:, 0]))
    data = replace(data, cost=np.where(data.arm > 0, CONTACT + OFF * redeemed, 0.0))
    settings = Settings(
        seed=SEED, threads=0, min_child_samples=max(20, learned // LEAVES_OF_ROWS), **TREES
    )
    fold = draw_folds(data.cluster, data.arm, FOLDS, rng)
    binned = Binned(data.X, data.schema.categorical, settings.threads)
    problem = prepare(data, binned, data.y, fold, settings, SEED)
    fitted: dict[str, Fitted] = {}
    for name in (*MEMBERS, "ensemble"):
        fitted[name] = make_learner(name, fitted).fit(problem)
    costs = fit_costs(data, binned, fold, settings)
    control = np.flatnonzero(data.arm == 0)
    response = fit_response(binned, data.X, control, data.converted[control], fold, settings)
    offers = parse_offers(OFFERS)
    return ScoringBundle(
        schema=data.schema,
        offers=offers,
        offered=(True,) * ARMS,
        policy="ensemble",
        effects=fitted["ensemble"].model,
        costs=costs.model,
        cost_calibration=calibrate_costs(
            data, costs.oof, fitted["ensemble"].oof, np.full(ARMS, CONTACT)
        ),
        response=response.model,
        money=Money("column"),
        frozen={},
        features={"names": [], "given": NAMES},
        golden=data.X[:16],
    ).save(folder / "bundle")


def make_features(folder: Path, customers: int) -> None:
    """A Parquet file of so many customers, in row groups of 100,000."""
    rng = np.random.default_rng([SEED, customers])
    schema = pa.schema([("customer_id", pa.string()), *((n, pa.float32()) for n in NAMES)])
    with pq.ParquetWriter(folder / "features.parquet", schema) as out:
        for first in range(0, customers, 100_000):
            some = range(first, min(first + 100_000, customers))
            X = rng.standard_normal((FEATURES, len(some)), dtype=np.float32)
            ids = pa.array([f"c{i:08d}" for i in some])
            out.write_table(pa.table([ids, *(pa.array(x) for x in X)], schema=schema))


def terms_of(bundle: ScoringBundle) -> list[BoosterTerm]:
    """Every prediction by a booster that a bundle needs, once: a model of several arms at once is
    asked for each arm, with that arm's constants behind the features."""
    models = [bundle.effects, bundle.costs]
    if bundle.response is not None:
        models.append(bundle.response.log_odds)
    found: dict[tuple[int, tuple[float, ...]], BoosterTerm] = {}
    while models:
        for term, _ in models.pop().terms:
            if isinstance(term, BoosterTerm):
                found[id(term.booster), term.appended] = term
            elif isinstance(term, ResponseTerm):
                models.append(term.model.log_odds)
    return list(found.values())


def plain(folder: Path) -> dict[str, Any]:
    """Read the features and predict with every booster: what nobody can do without."""
    terms = terms_of(load_bundle(folder / "bundle"))
    wall, cpu = time.monotonic(), time.process_time()
    table = pq.read_table(folder / "features.parquet", columns=NAMES)
    X = np.column_stack([table[name].to_numpy() for name in NAMES])
    read = time.monotonic() - wall, time.process_time() - cpu
    wide: dict[tuple[float, ...], Any] = {(): X}
    for term in terms:
        if term.appended not in wide:
            tail = np.tile(np.asarray(term.appended, dtype=np.float32), (len(X), 1))
            wide = {(): X, term.appended: np.hstack([X, tail])}
        made = np.asarray(term.booster.predict(wide[term.appended], raw_score=True))
        assert np.isfinite(made).all()
    return {
        "steps": {"read": read, "all": (time.monotonic() - wall, time.process_time() - cpu)},
        "memory": peak_memory(),
        "predictions": len(terms),
        "trees": sum(term.booster.num_trees() for term in terms),
    }


def score(folder: Path, customers: int) -> dict[str, Any]:
    """What the command does after the model is loaded."""
    config = configuration(folder, customers)
    bundle = load_bundle(folder / "bundle")
    model = LoadedModel(bundle, "scoring", "1", "champion", bundle.sha256)
    out = folder / "decisions.parquet"
    wall, cpu = time.monotonic(), time.process_time()
    check_out(out)
    population = from_features(
        folder / "features.parquet", config, bundle, config.as_of(None), threads=0
    )
    scored = time.monotonic() - wall, time.process_time() - cpu
    made = write_decisions(population, model, config, Salt(SIMULATED, "benchmark"), out)
    whole = time.monotonic() - wall, time.process_time() - cpu
    facts = made.manifest
    assert facts["rows"] == customers
    assert facts["expected_cost"] <= facts["budget"]
    return {
        "steps": {"scored": scored, "all": whole},
        "memory": peak_memory(),
        "offers": facts["offers"],
        "bytes": facts["bytes"],
    }


def table(customers: int, bare: dict[str, Any], ours: dict[str, Any]) -> str:
    """A row per step: seconds, customers a second, and what times of plain prediction that is."""
    base_wall, base_cpu = bare["steps"]["all"]

    def row(name: str, step: tuple[float, float], memory: int | None) -> list[str]:
        wall, cpu = step
        return [
            name,
            f"{wall:.1f}",
            f"{cpu:.1f}",
            f"{customers / wall:,.0f}",
            f"{wall / base_wall:.2f}",
            f"{cpu / base_cpu:.2f}",
            "" if memory is None else f"{memory / 2**30:.2f}",
        ]

    scored, whole = (ours["steps"][name] for name in ("scored", "all"))
    rest = (whole[0] - scored[0], whole[1] - scored[1])
    return text_table(
        f"Scoring {customers:,} customers, {FEATURES} features, {ARMS} arms, "
        f"{bare['predictions']} boosters of {bare['trees']:,} trees in all",
        ["", "seconds", "CPU s", "customers/s", "ratio", "CPU ratio", "GiB"],
        [
            row("plain LightGBM: read, predict", bare["steps"]["all"], bare["memory"]),
            row("  of which read", bare["steps"]["read"], None),
            row("serving score: all", whole, ours["memory"]),
            row("  read, check, predict", scored, None),
            row("  decide, write", rest, None),
        ],
        [
            "Ratio: to plain prediction with the same boosters, each once, in the same run.",
            f"The decisions file holds {ours['offers']:,} offers in {ours['bytes'] / 1e6:.1f} MB; "
            "the budget is kept.",
        ],
    )


def run(options: Options) -> str:
    """The suite's table."""
    customers = options.rows or (FULL_CUSTOMERS if options.full else CUSTOMERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configuration(folder, customers)
        make_bundle(folder)
        make_features(folder, customers)
        found = [
            apart("scoring", way, customers, label, "--folder", name)
            for way, label in (("plain", "plain LightGBM"), ("score", "serving score"))
        ]
    return table(customers, *found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring")
    parser.add_argument("--way", choices=["plain", "score"], required=True)
    parser.add_argument("--lines", type=int, required=True, help="customers")
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args(argv)
    found = plain(given.folder) if given.way == "plain" else score(given.folder, given.lines)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    main()
