"""A campaign tool's day: one server that is never restarted, the product's own client, commands
beside it. What the shop's customers do is made up here, so that what the models should find is
known: at first the app's customers answer to `c5` and the store's to `p10`, and from the day of the
campaign on it is the other way round.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from serving.client import ApiError, Client
from serving.resources import CampaignBody, CampaignBudget, ContactCap, EventBody
from serving.schemas import Decision
from tests.contracts.test_server import running

ROOT = Path(__file__).parents[2]
CUSTOMERS = 6000
IDS = [f"c-{i:04d}" for i in range(CUSTOMERS)]
# The even ones buy in the app, the odd ones in the store; every third buys often.
APP, STORE, OFTEN = set(IDS[::2]), set(IDS[1::2]), set(IDS[::3])
# (orders by themselves, orders more with the coupon that is liked)
OFTEN_SHARES, SELDOM_SHARES = (0.40, 0.55), (0.05, 0.10)
ORDER = 60.0
CONFIG: dict[str, Any] = {
    "name": "spring",
    "source": {"kind": "files", "path": "tables"},
    "features": {"set": ["recency_days", "order_days_365d", "channel_favourite_365d"]},
    "outcome": {"kind": "profit", "margin_rate": 0.4, "window_days": 1},
    "offers": [
        {"coupon_id": "c5", "kind": "fixed_off", "params": {"off": 5.0}, "contact_cost": 0.02},
        {"coupon_id": "p10", "kind": "percent_off", "params": {"rate_off": 0.1, "max_off": 20.0},
         "contact_cost": 0.02},
    ],
    "policy": {"budget": None, "holdout_share": 0.0, "exploration_share": 0.0,
               "global_holdout_share": 0.0},
    "training": {"learners": ["t"], "folds": 2, "threads": 1, "response_targets": ["response"]},
}  # fmt: skip


def answer_shares(customers: list[str], arms: list[str], day: str) -> Any:
    """(n,) how probably each of them orders within a day of being assigned an arm."""
    app = np.array([c in APP for c in customers])
    arm = np.array(arms)
    liked = np.where(app == (day == "before"), "c5", "p10")
    moved = arm == liked
    often = np.array([c in OFTEN for c in customers])
    shares = np.where(often[:, np.newaxis], OFTEN_SHARES, SELDOM_SHARES)
    return shares[:, 0] + shares[:, 1] * moved


def lines(customers: list[str], arms: list[str], times: Any, name: str) -> pd.DataFrame:
    """One order of each customer; a coupon takes off what it says."""
    arm = np.array(arms)
    discount = np.where(arm == "c5", 5.0, np.where(arm == "p10", 0.1 * ORDER, 0.0))
    return pd.DataFrame(
        {
            "customer_id": customers,
            "order_id": [f"{name}-{i}" for i in range(len(customers))],
            "transacted_at": times,
            "amount": ORDER - discount,
            "discount": discount,
            "channel": ["app" if c in APP else "store" for c in customers],
            "coupon_id": np.where(arm == "control", None, arm),
        }
    )


def write_shop(folder: Path, rng: np.random.Generator, now: datetime) -> None:
    """Half a year of orders, and an experiment three weeks ago."""
    folder.mkdir()
    # Whole days before today: whenever the test runs, the models see the same shop.
    today = pd.Timestamp(now).tz_localize(None).normalize()
    who = [*IDS, *sorted(OFTEN) * 9, *rng.choice(IDS, 2 * CUSTOMERS).tolist()]
    n = len(who)
    ago = np.r_[rng.integers(25, 180, CUSTOMERS), rng.integers(1, 180, n - CUSTOMERS)]
    ago[(ago > 18) & (ago < 23)] = 25  # the experiment has these days for itself
    past = today - pd.to_timedelta(ago, unit="D")
    arms = rng.choice(["control", "c5", "p10"], CUSTOMERS)
    at = today - pd.Timedelta(days=21)
    orders = rng.uniform(size=CUSTOMERS) < answer_shares(IDS, arms.tolist(), "before")
    buyers = [c for c, one in zip(IDS, orders, strict=True) if one]
    pd.concat(
        [
            lines(who, ["control"] * n, past, "o"),
            lines(buyers, arms[orders].tolist(), at + pd.Timedelta(hours=3), "first"),
        ],
        ignore_index=True,
    ).to_parquet(folder / "transactions.parquet")
    pd.DataFrame(
        {"customer_id": IDS, "campaign_id": "first", "assigned_at": at, "arm": arms,
         "assignment_prob": 1 / 3}
    ).to_parquet(folder / "exposures.parquet")  # fmt: skip
    pd.DataFrame({"customer_id": IDS, "marketing_consent": True}).to_parquet(
        folder / "customers.parquet"
    )


def command(folder: Path, *arguments: str) -> str:
    """What a command says that must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment.pop("MLFLOW_REGISTRY_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def campaign(now: datetime, **more: Any) -> CampaignBody:
    return CampaignBody(
        name="Summer",
        currency="EUR",
        starts_at=(now - timedelta(days=1)).isoformat(),
        coupons=["c5", "p10"],
        holdout_bps=1000,
        exploration_bps=9000,
        budget=CampaignBudget(20_000_000_000),
        contact_caps=[ContactCap(2, 7)],
        **more,
    )


def greedy(api: Client, customers: list[str]) -> dict[str, Decision]:
    """What is best for customers by the model that is served: the campaign of the configuration
    holds nobody out and explores nothing."""
    made = api.decide("spring", customers, dry_run=True).decisions
    return {d.customer_id: d for d in made}


def mostly(arm: str, made: dict[str, Decision]) -> bool:
    """Nine in ten of those who may be contacted would get this arm."""
    free = [d.arm for d in made.values() if d.reason != "contact_cap"]
    return len(free) > 50 and free.count(arm) > 0.9 * len(free)


def decided(api: Client, customers: list[str]) -> dict[str, Decision]:
    found = {}
    for start in range(0, len(customers), 1000):
        answer = api.decide("summer", customers[start : start + 1000])
        found |= {d.customer_id: d for d in answer.decisions}
    return found


def stood(decision: Decision) -> tuple[str | None, str, str, str | None]:
    return decision.decision_id, decision.action, decision.arm, decision.valid_until


def utc() -> str:
    return datetime.now(UTC).isoformat()


def report_back(
    api: Client, made: dict[str, Decision], rng: np.random.Generator
) -> tuple[list[EventBody], pd.DataFrame]:
    """The events of a day, sent in thousands, and the orders that the shop will know of."""
    customers = list(made)
    arms = [made[c].arm for c in customers]
    moved = rng.uniform(size=len(customers)) < answer_shares(customers, arms, "now")
    ordering = [c for c, one in zip(customers, moved, strict=True) if one]
    events = [
        EventBody(f"sent-{c}", "sent", utc(), decision_id=str(d.decision_id))
        for c, d in made.items()
        if d.action == "offer"
    ]
    cost = {"c5": 5_020_000, "p10": 6_020_000}
    for customer in ordering:
        d = made[customer]
        events.append(EventBody(f"ordered-{customer}", "ordered", utc(), customer_id=customer))
        if d.action == "offer":
            events.append(
                EventBody(f"redeemed-{customer}", "redeemed", utc(), cost_micros=cost[d.arm],
                          decision_id=str(d.decision_id))
            )  # fmt: skip
    for start in range(0, len(events), 1000):
        part = events[start : start + 1000]
        answer = api.send_events(part)
        assert (answer.accepted, answer.rejected) == (len(part), 0)
    orders = lines(
        ordering,
        [made[c].arm for c in ordering],
        pd.Timestamp(datetime.now(UTC)).tz_localize(None),
        "summer",
    )
    return events, orders


def downloaded(api: Client, job_id: str, folder: Path) -> pd.DataFrame:
    """The rows of a job, which are the same in all its formats."""
    manifest = api.results(job_id)
    files = {file.format: api.download(job_id, file, folder) for file in manifest.files}
    assert len(files) == len(manifest.files) == 3
    found = pq.read_table(files["parquet"]).to_pandas()
    text = gzip.decompress(files["ndjson"].read_bytes()).decode().splitlines()
    assert [json.loads(row)["decision_id"] for row in text] == found["decision_id"].tolist()
    assert len(pd.read_csv(files["csv"])) == len(found) == manifest.rows
    assert (found["action"] == "offer").sum() == manifest.offers
    return found


def test_a_campaign_tools_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    now = datetime.now(UTC)
    monkeypatch.setenv("PERSUADABLES_SALT", "the salt of one day, number 8, of 32 bytes and more")
    write_shop(tmp_path / "tables", rng, now)
    (tmp_path / "spring.yaml").write_text(yaml.safe_dump(CONFIG))
    use = ("--config", "spring.yaml")
    assert "Champion: spring version 1, policy t" in command(tmp_path, "training", "train", *use)
    scopes = "score,events,read,admin"
    token = command(tmp_path, "serving", "keys", *use, "create", "--scopes", scopes).split()[0]
    with running(tmp_path) as server, Client(str(server.base_url), token) as api:
        assert server.get("/v1/campaigns").status_code == 401
        before = api.model()
        assert (before.model_version, before.degraded) == ("1", [])
        assert mostly("c5", greedy(api, sorted(APP & OFTEN)[:300]))
        assert mostly("p10", greedy(api, sorted(STORE & OFTEN)[:300]))

        # A campaign is created, and a few are decided before the audience is built.
        created = api.create_campaign("summer", campaign(now))
        assert created.answer.state == "active"
        early = decided(api, IDS[:40])
        offered = [d for d in early.values() if d.action == "offer"]
        assert offered
        assert all(not d.sticky_hit for d in early.values())

        # The audience: all others, and what was decided stands.
        queued = api.build_audience("summer", formats=("ndjson", "csv", "parquet"))
        job = api.wait_for(queued.job_id, seconds=120, every=0.5)
        assert (job.state, job.progress.rows_done) == ("succeeded", CUSTOMERS)
        (tmp_path / "down").mkdir()
        table = downloaded(api, queued.job_id, tmp_path / "down").set_index("customer_id")
        assert sorted(table.index) == IDS
        made = decided(api, IDS)
        assert {c: (d.decision_id, d.action, d.arm) for c, d in made.items()} == {
            r.Index: (r.decision_id, r.action, r.arm) for r in table.itertuples()
        }
        assert {c: stood(made[c]) for c in early} == {c: stood(d) for c, d in early.items()}
        assert all(d.sticky_hit for d in made.values())

        # A pause ends all offers, and changes nothing that was decided.
        assert api.pause("summer", "wrong picture").state == "paused"
        for customer, d in decided(api, IDS[:200]).items():
            offer = made[customer].action == "offer"
            assert d.action == "none"
            assert d.reason == ("campaign_paused" if offer else made[customer].reason)
        assert api.resume("summer").state == "active"
        assert {c: stood(d) for c, d in decided(api, IDS[:200]).items()} == {
            c: stood(made[c]) for c in IDS[:200]
        }

        # What became of it comes back, twice.
        events, orders = report_back(api, made, rng)
        again = api.send_events(events[:1000])
        assert (again.accepted, again.duplicate) == (0, 1000)
        redeemed = {str(e.decision_id): int(str(e.cost_micros)) for e in events if
                    e.type == "redeemed"}  # fmt: skip
        won = next(c for c, d in made.items() if d.decision_id in redeemed)
        assert decided(api, [won])[won].reason == "already_converted"

        # One customer goes for good, with what was reserved for the offer.
        promised = api.report("summer").budget.committed_micros
        gone = next(
            c for c, d in made.items() if d.action == "offer" and d.decision_id not in redeemed
        )
        assert api.erase_customer(gone).state == "tombstoned"
        with pytest.raises(ApiError, match="unknown_customer"):
            api.customer(gone)
        assert decided(api, [gone])[gone].reason == "unknown_customer"
        assert api.report("summer").budget.committed_micros < promised

        # The report counts what was told.
        said = api.report("summer")
        arms = Counter(d.arm for d in made.values())
        assert {a.arm: a.customers for a in said.arms} == dict(arms)
        held = sum(d.is_holdout for d in made.values())
        assert said.reasons.get("holdout") == held
        assert said.srm.ok
        assert sum(a.sent for a in said.arms) == sum(d.action == "offer" for d in made.values())
        assert sum(a.redeemed for a in said.arms) == len(redeemed)
        assert sum(a.orders for a in said.arms) == len(orders)
        assert said.budget.realised_micros == sum(redeemed.values())
        assert said.budget.committed_micros + said.budget.realised_micros <= 20_000_000_000
        assert said.uplift is not None
        ordered = set(orders["customer_id"])
        sides = [
            np.mean([c in ordered for c, d in made.items() if d.is_holdout == out])
            for out in (False, True)
        ]
        assert said.uplift.estimate == pytest.approx(sides[0] - sides[1])

        # The log goes to training, with the day's orders.
        told = command(tmp_path, "serving", "export", *use, "--out", "tables")
        assert told.count("wrote") == 2
        exported = pd.read_parquet(tmp_path / "tables" / "exposures.parquet")
        assert sorted(exported["decision_id"]) == sorted(str(d.decision_id) for d in made.values())
        assert gone not in set(exported["customer_id"])
        path = tmp_path / "tables" / "transactions.parquet"
        pd.concat([pd.read_parquet(path), orders], ignore_index=True).to_parquet(path)
        # Nobody waits for tomorrow: that today is over is said to the training.
        whole = f"source.complete_until={(datetime.now(UTC) + timedelta(days=1)).isoformat()}"
        told = command(tmp_path, "training", "train", *use, "--set", whole)
        assert "Champion: spring version 2, policy t" in told
        assert api.model().model_version == "1"

        # The new champion is taken up by the server that has run all day.
        command(tmp_path, "serving", "sync", *use)
        until = time.monotonic() + 60
        answered = Counter[str]()
        while "2" not in answered and time.monotonic() < until:
            answered[api.decide("spring", IDS[:5], dry_run=True).model_version] += 1
            time.sleep(0.1)
        after = api.model()
        assert after.model_version == "2"
        assert after.loaded_at > before.loaded_at
        # The shop's tables still have whoever was erased; the server has nobody.
        with pytest.raises(ApiError, match="unknown_customer"):
            api.customer(gone)
        assert mostly("c5", greedy(api, sorted(STORE & OFTEN)[:300]))
        found = greedy(api, sorted(APP & OFTEN)[:300])
        assert mostly("p10", found)
        # Whoever has an offer of today is left in peace; the new snapshot knows it too.
        assert {c for c, d in found.items() if d.reason == "contact_cap"} == {
            c for c in found if made[c].action == "offer" and c != gone
        }
        # What was promised stands; what is decided from now on is decided by the new model.
        stands = [c for c in IDS[:200] if c != gone]
        for customer, d in decided(api, stands).items():
            assert (d.decision_id, d.arm) == (made[customer].decision_id, made[customer].arm)
        api.create_campaign("autumn", campaign(now))
        fresh = api.decide("autumn", IDS[:300])
        assert fresh.model_version == "2"
