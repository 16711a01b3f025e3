"""Audience jobs end to end: everyone of a snapshot scored, allocated, decided, stored, written.

The scores are drawn and not predicted: a job reads those of the snapshot. Each way is a process of
its own, with a SQLite log of its own, and writes all three formats.

Usage: python -m benchmarks --only audiences [--full: a million customers]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy.engine import Connection

from benchmarks import scoring
from benchmarks.report import Options, apart, peak_memory, text_table
from benchmarks.scale import ARMS, SEED
from serving.audiences import Audience, Planned
from serving.jobs import Worker, current_scorer
from serving.jobs_files import results_home
from serving.load import LoadedModel, write_atomically
from serving.log.engine import open_log
from serving.log.jobs import Jobs
from serving.log.ledger import budgets
from serving.log.migrate import upgrade
from serving.population import RFM, Labels, Population
from serving.salt import Salt
from serving.service import Service, now_micros
from serving.snapshot import write_snapshot
from serving.startup import register_configured
from uplift.bundle import Money, Scores, ScoringBundle
from uplift.data import Schema
from uplift.effects import EffectModel
from uplift.offers import parse_offers
from uplift.response import ResponseModel

CUSTOMERS, FULL_CUSTOMERS = 100_000, 1_000_000
NAME = "scoring"
SALT = Salt(b"a salt of the benchmark, of 32 bytes and more", "benchmark")
WAYS = {
    "scores": ("scores alone", {"allocate": False}),
    "dry": ("dry run", {"dry_run": True}),
    "stored": ("stored and charged", {}),
}


def prepare(folder: Path, customers: int) -> None:
    """A model, and a snapshot of so many customers with drawn scores."""
    config = scoring.configuration(folder, customers)
    bundle = _bundle(folder)
    home = folder / "data" / "bundles" / NAME
    home.mkdir(parents=True)
    shutil.copytree(folder / "bundle", home / bundle.sha256)
    current = {"name": NAME, "alias": "champion", "version": "1", "sha256": bundle.sha256}
    write_atomically(home / "current.json", current)
    model = LoadedModel(bundle, NAME, "1", "champion", bundle.sha256)
    rng = np.random.default_rng([SEED, customers])
    shape = (customers, len(bundle.arms))
    reward = rng.normal(0.2, 1.0, shape).astype(np.float32)
    nobody = Labels(np.zeros(customers, dtype=np.uint8), ())
    people = Population(
        as_of=datetime(2026, 1, 1, tzinfo=UTC),
        customer_id=np.array([f"c{i:08d}" for i in range(customers)]).astype(np.bytes_),
        X=np.zeros((customers, len(bundle.schema.names)), dtype=np.float32),
        scores=Scores(
            reward,
            reward,
            rng.gamma(2.0, 0.5, shape).astype(np.float32),
            rng.random(customers).astype(np.float32),
        ),
        tier=nobody,
        stage=nobody,
        labels=nobody,
        rfm=np.full((customers, len(RFM)), np.nan),
        consent=rng.random(customers) > 0.05,
        free_at=np.full(customers, np.datetime64("NaT", "us")),
    )
    write_snapshot(people, model, config, SALT, folder / "data")


def _bundle(folder: Path) -> ScoringBundle:
    """A bundle that knows the coupons, and says the same of everyone: no job asks it."""
    rng = np.random.default_rng(SEED)
    frame = pd.DataFrame(rng.normal(size=(64, len(scoring.NAMES))), columns=scoring.NAMES)
    schema = Schema.learn(frame)
    return ScoringBundle(
        schema=schema,
        offers=parse_offers(scoring.OFFERS),
        offered=(True,) * ARMS,
        policy="drawn",
        effects=EffectModel(np.full(ARMS, 0.2), ()),
        costs=EffectModel(np.full(ARMS, 1.0), ()),
        cost_calibration=np.tile([0.0, 1.0, 0.0], (ARMS, 1)),
        response=ResponseModel(EffectModel(np.zeros(1), ()), 1.0, 0.0),
        money=Money("column"),
        frozen={},
        features={"names": [], "given": scoring.NAMES},
        golden=schema.encode(frame)[:16],
    ).save(folder / "bundle")


def do(folder: Path, customers: int, way: str) -> dict[str, Any]:
    """One job, from its queue to its results; CPU seconds of its steps."""
    config = scoring.configuration(folder, customers)
    scorer = current_scorer(config, SALT, folder / "data")
    log = open_log(f"sqlite:///{folder / way}.db")
    upgrade(log)
    service = Service(log, SALT)
    service.start()
    register_configured(service, scorer)
    asked = {"campaign_id": NAME, "formats": ["ndjson", "csv", "parquet"], **WAYS[way][1]}
    with log.write() as connection:
        Jobs(log).add(connection, "job-1", NAME, "k", json.dumps(asked), now_micros())
    marks: list[float] = []
    whole = Audience.plan

    def plan(self: Audience, connection: Connection) -> Planned:
        marks.append(time.process_time())
        found = whole(self, connection)
        marks.append(time.process_time())
        return found

    Audience.plan = plan  # type: ignore[method-assign]
    before, wall, cpu = peak_memory(), time.monotonic(), time.process_time()
    try:
        Worker(log, scorer, folder / "data").run_one()
    finally:
        Audience.plan = whole  # type: ignore[method-assign]
    wall, end = time.monotonic() - wall, time.process_time()
    results = results_home(NAME, folder / "data") / "job-1"
    told = json.loads((results / "manifest.json").read_bytes())
    assert told["rows"] == customers
    with log.read() as connection:
        budget = budgets(log, connection, [NAME])[NAME]
    assert budget.committed == (told["expected_cost_micros"] if way == "stored" else 0)
    assert budget.cap is not None
    assert told["expected_cost_micros"] <= budget.cap
    service.close()
    return {
        "wall": wall,
        "cpu": end - cpu,
        "plan": marks[1] - marks[0] if marks else 0.0,
        "before": before,
        "memory": peak_memory(),
        "offers": told["offers"],
        "spent": told["expected_cost_micros"] / budget.cap,
        "bytes": sum(file["bytes"] for file in told["files"]),
        "log": sum(f.stat().st_size for f in folder.glob(f"{way}.db*")),
    }


def table(customers: int, found: dict[str, dict[str, Any]]) -> str:
    """A row per way: seconds, customers a second, memory."""
    rows = []
    for way, one in found.items():
        rows.append(
            [
                WAYS[way][0],
                f"{one['wall']:.1f}",
                f"{one['cpu']:.1f}",
                f"{one['plan']:.1f}",
                f"{customers / one['cpu']:,.0f}",
                f"{one['before'] / 2**20:,.0f}",
                f"{one['memory'] / 2**20:,.0f}",
                f"{one['bytes'] / 1e6:,.1f}",
                f"{one['log'] / 1e6:,.1f}",
            ]
        )
    stored = found["stored"]
    return text_table(
        f"Audience jobs of {customers:,} customers, {ARMS} arms, three formats, a SQLite log",
        ["", "seconds", "CPU s", "allocate", "per CPU s", "MiB before", "MiB peak", "MB files",
         "MB log"],
        rows,
        [
            "allocate: CPU seconds of the one step that looks at everyone at once. MiB before: the "
            "process with the",
            f"snapshot open. {stored['offers']:,} offers were stored for {stored['spent']:.2%} of "
            "the budget; the counter is their sum.",
        ],
    )  # fmt: skip


def run(options: Options) -> str:
    """The suite's table."""
    customers = options.rows or (FULL_CUSTOMERS if options.full else CUSTOMERS)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), customers)
        found = {}
        for way, (label, _) in WAYS.items():
            found[way] = apart("audiences", way, customers, label, "--folder", name)
            shutil.rmtree(Path(name) / "data" / "jobs")
    return table(customers, found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audiences")
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--lines", type=int, required=True, help="customers")
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args(argv)
    print(json.dumps(do(given.folder, given.lines, given.way)))
    return 0


if __name__ == "__main__":
    main()
