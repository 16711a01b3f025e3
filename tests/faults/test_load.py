"""Many clients and several workers over HTTP, one budget and one stock of coupons."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import func, select

from serving.log.engine import VARIABLE, open_log
from serving.log.migrate import upgrade
from serving.log.schema import campaign_budget, coupon_stock, decisions
from tests.contracts.test_server import running
from tests.unit.serving.answering import JSON
from tests.unit.serving.log.conftest import new_database

IDS = [f"c-{i:03d}" for i in range(300)]
CAP = 1_000_000_000
PIECES = 150
NEWCOMERS = 3000
# A campaign whose default offer makes demand without end, beside the customers of the shop.
CAMPAIGN = {
    "name": "Rush",
    "currency": "EUR",
    "window_days": 14,
    "coupons": ["c5", "p10"],
    "holdout_bps": 500,
    "exploration_bps": 500,
    "budget": {"cap_micros": CAP, "mode": "expected", "safety_factor": 1.0},
    "unknown_customer": "default_offer",
    "default_coupon": "c5",
    "feature_max_age_hours": 8760,
}


@dataclass
class Told:
    """What clients were answered."""

    offers: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Customer -> (decision id, coupon) of every offer."""
    replies: list[tuple[dict[str, str], bytes, bytes]] = field(default_factory=list)
    """(headers, body, answer) of requests with a key."""
    statuses: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    """Requests whose answer never came; each is asked again under its key."""
    killed: list[int] = field(default_factory=list)


async def client_of(url: str, number: int, newcomers: int, told: Told) -> None:
    """Ask about known customers that others ask about too, and new ones that consent."""
    rng = random.Random(number)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as http:
        for n in range(newcomers // 5):
            customers: list[dict[str, Any]] = [{"customer_id": i} for i in rng.sample(IDS, 3)] + [
                {"customer_id": f"n-{rng.randrange(NEWCOMERS)}", "context": {"consent": True}}
                for _ in range(5)
            ]
            customers = list({c["customer_id"]: c for c in customers}.values())
            body = json.dumps({"campaign_id": "rush", "customers": customers}).encode()
            headers = {**JSON, "idempotency-key": f"{number}-{n}"}
            answer = await asked(http, body, headers, told)
            if n % 5 == 0:
                told.replies.append((headers, body, answer.content))
            for d in answer.json()["decisions"]:
                told.reasons[d["reason"]] += 1
                if d["action"] == "offer":
                    offer = (d["decision_id"], d["coupon_id"])
                    told.offers.setdefault(d["customer_id"], set()).add(offer)


async def asked(
    http: httpx.AsyncClient, body: bytes, headers: dict[str, str], told: Told
) -> httpx.Response:
    """The answer, asked for again as long as the server is busy."""
    for _ in range(300):
        try:
            answer = await http.post("/v1/decisions", content=body, headers=headers)
        except httpx.TransportError:
            told.broken += 1
            await asyncio.sleep(0.2)
            continue
        told.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            return answer
        assert answer.status_code in (409, 429, 503), answer.text
        assert answer.json()["code"] in ("in_flight", "overloaded", "quota"), answer.text
        await asyncio.sleep(min(1.0, float(answer.headers["retry-after"])))
    raise AssertionError("no answer in all this time")


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def workers_of_the_server() -> list[int]:
    """Workers of the server that this process has started, which have begun to serve."""

    def runs(process: int, what: bytes) -> bool:
        return what in Path(f"/proc/{process}/cmdline").read_bytes()

    return [
        worker
        for server in children(os.getpid())
        if runs(server, b"serving")
        for worker in children(server)
        if runs(worker, b"spawn_main")
    ]


async def kill_workers(told: Told, kills: int) -> None:
    """Every few seconds a worker is gone, as if its machine had lost power."""
    rng = random.Random(kills)
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(2.0, 4.0))
        worker = rng.choice(workers_of_the_server())
        os.kill(worker, signal.SIGKILL)
        told.killed.append(worker)


def rush(
    folder: Path, url: str, workers: int, clients: int, newcomers: int, kills: int = 0
) -> Told:
    """Everything that must hold while so many clients ask so many workers at once.

    folder: with the shop's bundle and configuration; newcomers: asked about by each client; kills:
    so many workers are killed meanwhile.
    """
    config = folder / "spring.yaml"
    raw = yaml.safe_load(config.read_text())
    raw["offers"][1]["stock"] = PIECES
    config.write_text(yaml.safe_dump(raw))
    log = open_log(url)
    upgrade(log)
    told = Told()
    with running(folder, "--workers", str(workers), **{VARIABLE: url}) as http:
        address = str(http.base_url)
        made = http.put(
            "/v1/campaigns/rush",
            json=CAMPAIGN | {"starts_at": (datetime.now(UTC) - timedelta(days=1)).isoformat()},
            headers={"if-none-match": "*"},
        )
        assert made.status_code == 201, made.text

        async def everyone() -> None:
            await asyncio.gather(
                kill_workers(told, kills),
                *(client_of(address, number, newcomers, told) for number in range(clients)),
            )

        asyncio.run(everyone())
        # Idempotent replays give the same bytes, whichever worker they meet.
        left = []
        for headers, body, content in random.Random(1).sample(told.replies, 20):
            again = httpx.post(f"{address}/v1/decisions", content=body, headers=headers)
            assert again.content == content
            assert again.headers["idempotency-replayed"] == "true"
            left.append(int(again.headers["ratelimit"].partition("r=")[2].partition(";")[0]))
        # And all workers count one quota, which begins anew once a minute.
        assert sum(b != a - 1 for a, b in itertools.pairwise(left)) <= 1
    # Nobody ever has two coupons of a window.
    assert all(len(offers) == 1 for offers in told.offers.values())
    with log.read() as connection:
        of = decisions.c.campaign_id == "rush"
        held = connection.execute(select(func.sum(decisions.c.reserved_micros)).where(of)).scalar()
        budget = connection.execute(
            select(campaign_budget).where(campaign_budget.c.campaign_id == "rush")
        ).one()
        given = connection.execute(
            select(coupon_stock.c.given).where(coupon_stock.c.coupon_id == "p10")
        ).scalar_one()
        rows = list(connection.execute(select(decisions).where(of, decisions.c.sticky)))
    log.close()
    assert budget.committed_micros == held <= CAP
    assert budget.committed_micros >= 0.99 * CAP
    pieces = [r for r in rows if r.action == "offer" and r.arm == "p10"]
    assert len(pieces) == given <= PIECES
    assert len({r.customer_id for r in rows}) == len(rows)
    # What was told is what is stored, and the other way round.
    stored = {r.customer_id: (r.decision_id, r.arm) for r in rows if r.action == "offer"}
    assert {c: next(iter(offers)) for c, offers in told.offers.items()} == stored
    return told


def test_two_workers_and_forty_clients_share_a_budget(folder: Path, postgres_server: str) -> None:
    told = rush(folder, new_database(postgres_server), workers=2, clients=40, newcomers=30)
    assert told.reasons["budget_exhausted"] > 0


@pytest.mark.slow
def test_eight_workers_and_two_hundred_clients_share_a_budget(folder: Path, url: str) -> None:
    told = rush(folder, url, workers=8, clients=200, newcomers=30)
    assert told.reasons["budget_exhausted"] > 0
    print(f"\n{sum(told.statuses.values())} requests: {dict(told.statuses)}, {dict(told.reasons)}")


@pytest.mark.slow
def test_workers_that_are_killed_under_load_lose_and_double_nothing(folder: Path, url: str) -> None:
    told = rush(folder, url, workers=3, clients=60, newcomers=120, kills=4)
    assert len(set(told.killed)) == 4
    assert told.broken > 0
    print(f"\n{told.broken} answers lost to {len(told.killed)} kills, {dict(told.statuses)}")
