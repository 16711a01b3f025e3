"""Killed at any moment: what was answered is there, once, and paid for."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select, update

from serving import schemas
from serving.desk import Answer, Ask
from serving.log.engine import open_log
from serving.log.idempotency import Once
from serving.log.schema import campaign_budget, decisions
from serving.salt import VARIABLE
from tests.unit.serving.answering import Client, asked, make_service, post, serving
from tests.unit.serving.small_shop import SALT, Shop

ROOT = Path(__file__).parents[4]
# Answers asks from many tasks at once and says so before and after each, until it is killed.
WORKER = """
import asyncio, random, sys
from pathlib import Path
from features.config import load_config
from serving import schemas
from serving.desk import Ask
from serving.load import resolve
from serving.log.engine import open_log
from serving.log.idempotency import Once
from serving.salt import load_salt
from serving.scorer import Scorer
from serving.service import Service
from serving.snapshot import current_name, open_snapshot, snapshots_folder
import json
root, url, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config, salt = load_config(root / "spring.yaml"), load_salt()
model = resolve(config, root=root / "data")
home = snapshots_folder(config, root / "data")
scorer = Scorer(model, open_snapshot(home / current_name(home), model), config, salt)
service = Service(open_log(url), salt)
service.start()
rng = random.Random(seed)
async def one(n):
    while True:
        ids = rng.sample(range(300), rng.choice((1, 1, 1, 5)))
        customers = [schemas.CustomerRequest(f"c-{i:03d}") for i in ids]
        key = f"{seed}-{n}-{rng.random()}"
        once = Once("k", "r", key, key)
        print("ask", key, *(c.customer_id for c in customers), flush=True)
        answer = await service.decide(
            scorer, "spring", lambda rules: Ask(scorer, rules, customers, "r", False, once)
        )
        for d in json.loads(answer.body)["decisions"]:
            said = (d[name] for name in ("customer_id", "decision_id", "arm", "action"))
            print("told", key, *said, flush=True)
async def main():
    print("ready", flush=True)
    await asyncio.gather(*(one(n) for n in range(20)))
asyncio.run(main())
"""


Told = dict[str, tuple[str, ...]]  # decision id -> customer, arm, action, key of the request


def killed_rounds(shop: Shop, url: str, folder: Path, rounds: int) -> tuple[Told, Told]:
    """What killed servers had answered, and what those customers are told when asked again
    (without what is decided anew each time)."""
    asks: dict[str, list[str]] = {}
    raw = shop.config.model_dump(mode="json")
    (folder / "spring.yaml").write_text(yaml.safe_dump(raw))
    (folder / "data").symlink_to(shop.root / "data")
    scorer = shop.scorer()
    make_service(scorer, url).close()
    cap = 40_000_000
    log = open_log(url)
    with log.write() as connection:
        connection.execute(update(campaign_budget).values(cap_micros=cap))
    environment = {**os.environ, VARIABLE: SALT.value.decode(), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    rng = random.Random(1)
    told: Told = {}
    for round_ in range(rounds):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), url, str(round_)],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        first = []
        while not first or not first[-1].startswith("told"):
            first.append(worker.stdout.readline())
        time.sleep(rng.uniform(0.05, 0.6))
        worker.kill()
        lines = [*first, *worker.stdout.read().splitlines(keepends=True)]
        worker.stdout.close()
        worker.wait()
        whole = [line.split() for line in lines if line.endswith("\n")]
        for what, key, *rest in whole:
            if what == "ask":
                asks[key] = rest
            else:
                customer, decision_id, arm, action = rest
                told.setdefault(decision_id, (customer, arm, action, key))
        with log.read() as connection:
            stored = {r.decision_id: r for r in connection.execute(select(decisions))}
            budget = connection.execute(select(campaign_budget)).one()
            held = connection.execute(select(func.sum(decisions.c.reserved_micros))).scalar()
        # No answered decision is lost or changed, and none is there twice.
        for decision_id, (customer, arm, action, _) in told.items():
            row = stored[decision_id]
            assert (row.customer_id, row.arm, row.action) == (customer, arm, action)
        sticky = [(r.customer_id, r.window_id) for r in stored.values() if r.sticky]
        assert len(sticky) == len(set(sticky))
        assert budget.committed_micros == (held or 0) <= cap
    with serving(scorer, url) as client:
        # Retries, also of what was never answered: the same bytes twice, with what was answered.
        newest = [key for key in asks if key.startswith(f"{rounds - 1}-")]
        replies = {key: [retried(client, key, asks[key]) for _ in range(2)] for key in newest}
        assert all(one == other for one, other in replies.values())
        for decision_id, (_, _, _, key) in told.items():
            if key in replies:
                assert decision_id in {d["decision_id"] for d in replies[key][0]["decisions"]}
        with log.read() as connection:
            stored = {r.decision_id: r for r in connection.execute(select(decisions))}
        sticky = [(r.customer_id, r.window_id) for r in stored.values() if r.sticky]
        assert len(sticky) == len(set(sticky))
        body = asked(*{customer for customer, *_ in told.values()})
        again = post(client, body).json()["decisions"]
    log.close()
    kept = {
        d["decision_id"]: (d["customer_id"], d["arm"], d["action"])
        for d in again
        if d["sticky_hit"]
    }
    return told, kept


def retried(client: Client, key: str, customers: list[str]) -> dict[str, Any]:
    """The answer to a request that a killed server has or has not answered."""
    once = Once("k", "r", key, key)
    asked_for = [schemas.CustomerRequest(customer) for customer in customers]

    async def ask() -> Answer:
        return await client.service.decide(
            client.scorer,
            "spring",
            lambda rules: Ask(client.scorer, rules, asked_for, "r", False, once),
        )

    found: dict[str, Any] = json.loads(asyncio.run(ask()).body)
    return found


def test_two_kills_lose_nothing(shop: Shop, url: str, tmp_path: Path) -> None:
    told, kept = killed_rounds(shop, url, tmp_path, 2)
    assert len(told) > 20
    assert kept
    assert {name: told[name][:3] if name in told else said for name, said in kept.items()} == kept


@pytest.mark.slow
def test_fifty_kills_lose_nothing(shop: Shop, url: str, tmp_path: Path) -> None:
    told, kept = killed_rounds(shop, url, tmp_path, 50)
    assert len(told) > 20
    assert kept
    assert {name: told[name][:3] if name in told else said for name, said in kept.items()} == kept
