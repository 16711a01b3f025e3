"""Whole audiences: who gets what, what it costs, and what other decisions have to do with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from serving.audiences import DECISIONS, Audience
from serving.jobs import Worker
from serving.log.campaigns import Campaigns
from serving.log.engine import LogUnavailable
from serving.log.schema import campaign_budget, coupon_stock, decisions, metadata
from serving.resources import CampaignBody
from serving.service import now_micros
from serving.snapshot import snapshots_folder, write_snapshot
from tests.unit.serving import jobs
from tests.unit.serving.answering import JSON, Client, asked, post, serving
from tests.unit.serving.small_shop import REFUSED, Shop
from uplift.policy import STICKY

ALL = [f"c-{i:03d}" for i in range(300)]
SAME = ("customer_id", "action", "arm", "coupon_id", "reason", "is_holdout", "is_exploration")


@pytest.fixture
def client(shop: Shop, tmp_path: Path) -> Iterator[Client]:
    with serving(shop.scorer(), tmp_path) as found:
        found.folder = tmp_path
        yield found


def put(client: Client, name: str = "solo", **changes: Any) -> None:
    """A campaign without draws, unless asked for."""
    body = {
        "name": "Solo", "currency": "EUR", "starts_at": "2025-12-20T00:00:00Z",
        "window_days": 30, "coupons": ["c5"], "holdout_bps": 0, "exploration_bps": 0,
    } | changes  # fmt: skip
    answer = client.request(
        "PUT", f"/v1/campaigns/{name}", content=json.dumps(body),
        headers={**JSON, "if-none-match": "*"},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text


def spent(client: Client, campaign: str = "spring") -> int:
    """What the counter says; it is always the sum of the rows."""
    with client.service.log.read() as connection:
        held = connection.execute(
            select(func.sum(decisions.c.reserved_micros)).where(
                decisions.c.campaign_id == campaign, decisions.c.reservation == "held"
            )
        ).scalar()
        counter = connection.execute(
            select(campaign_budget.c.committed_micros).where(
                campaign_budget.c.campaign_id == campaign
            )
        ).scalar_one()
    assert counter == (held or 0)
    return int(counter)


def tables(client: Client) -> dict[str, list[Any]]:
    """Everything in the log but what only says that the server lives, and the jobs themselves."""
    with client.service.log.read() as connection:
        return {
            table.name: sorted(map(str, connection.execute(select(table))))
            for table in metadata.sorted_tables
            if table.name not in ("facts", "jobs", "idempotency")
        }


def during(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None], after: int) -> list[int]:
    """Let something happen once, after so many chunks were committed."""
    calls: list[int] = []
    whole = Audience.commit

    def commit(self: Audience, *given: Any, **more: Any) -> Any:
        calls.append(1)
        return whole(self, *given, **more)

    def breathe(self: Worker) -> None:  # between two chunks, where others may write
        if len(calls) == after:
            happens()

    monkeypatch.setattr(Audience, "commit", commit)
    monkeypatch.setattr(Worker, "breathe", breathe)
    return calls


# What an audience gets


def test_the_budget_goes_where_it_brings_most_per_cost(client: Client, shop: Shop) -> None:
    """With one coupon and no draws the optimum is known: the steepest first, until one does not
    fit."""
    cap = 60_000_000
    put(client, budget={"cap_micros": cap, "safety_factor": 1.0})
    found = jobs.rows(client, jobs.done(client, client.folder, "solo"))
    assert [row["customer_id"] for row in found] == ALL
    arm = shop.model.bundle.arms.index("c5")
    reward = shop.population.scores.reward[:, arm].astype(float)
    cost = np.rint(shop.population.scores.cost[:, arm].astype(float) * 1e6)
    ratio = reward / cost
    offered = np.array([row["action"] == "offer" for row in found])
    competing = np.array([row["reason"] in ("best_net_value", "below_threshold") for row in found])
    assert offered.sum() > 20
    left_out = competing & ~offered & (reward > 0)
    assert left_out.any()
    assert ratio[offered].min() >= ratio[left_out].max()
    total = int(cost[offered].sum())
    assert total == spent(client, "solo") == sum(row["expected_cost_micros"] for row in found)
    assert total <= cap < total + cost[left_out & (ratio == ratio[left_out].max())].min()


def test_draws_are_those_of_single_decisions_and_arms_too_where_the_budget_is_ample(
    client: Client,
) -> None:
    put(client, coupons=["c5", "p10"], holdout_bps=1500, exploration_bps=2000)
    job_id = jobs.done(client, client.folder, "solo", dry_run=True)
    found = jobs.rows(client, job_id)
    single = post(client, asked(*ALL, campaign="solo", dry_run=True)).json()["decisions"]
    assert {row["reason"] for row in found} >= {"holdout", "exploration", "best_net_value"}
    for row, one in zip(found, single, strict=True):
        # The audience's columns are the decision's, in its own words.
        same = {name: row[name] for name in DECISIONS.names if name != "warnings"}
        assert same == {name: one[name] for name in same}


def test_an_audience_stands_like_any_decision(client: Client) -> None:
    job_id = jobs.done(client, client.folder)
    first, total = jobs.rows(client, job_id), spent(client)
    assert total == jobs.manifest(client, job_id)["expected_cost_micros"] > 100_000_000
    single = post(client, asked(*ALL)).json()["decisions"]
    again = jobs.rows(client, jobs.done(client, client.folder))
    for row, one, later in zip(first, single, again, strict=True):
        stands = row["reason"] in STICKY
        for other in (one, later):
            assert other["sticky_hit"] is stands
            if stands:
                assert other["decision_id"] == row["decision_id"]
                assert {k: other[k] for k in SAME} == {k: row[k] for k in SAME}
    assert spent(client) == total


def test_decisions_that_stand_are_kept_and_never_charged_twice(client: Client) -> None:
    single = post(client, asked(*ALL[:120])).json()["decisions"]
    before = spent(client)
    found = jobs.rows(client, jobs.done(client, client.folder))
    for one, row in zip(single, found, strict=False):
        if one["reason"] in STICKY:
            assert row["sticky_hit"]
            assert row["decision_id"] == one["decision_id"]
            assert row["coupon_id"] == one["coupon_id"]
    new = sum(row["expected_cost_micros"] for row in found if not row["sticky_hit"])
    assert spent(client) == before + new <= 120_000_000


def test_a_dry_run_changes_nothing_and_foretells_the_job(client: Client) -> None:
    before = tables(client)
    job_id = jobs.done(client, client.folder, dry_run=True)
    assert tables(client) == before
    told = jobs.rows(client, job_id)
    assert {row["decision_id"] for row in told} == {None}
    made = jobs.rows(client, jobs.done(client, client.folder))
    for one, other in zip(told, made, strict=True):
        assert one | {"decision_id": other["decision_id"]} == other


def test_scores_alone_are_the_bundles_and_change_nothing(client: Client, shop: Shop) -> None:
    before = tables(client)
    job_id = jobs.done(client, client.folder, allocate=False)
    assert tables(client) == before
    found = jobs.rows(client, job_id)
    scores = shop.population.scores
    for k, arm in enumerate(shop.model.bundle.arms):
        uplift = np.array([row[f"uplift_{arm}"] for row in found], dtype=np.float32)
        assert uplift.tobytes() == scores.cate[:, k].tobytes()
        for name, values in (
            ("expected_incremental_profit", scores.reward), ("expected_cost", scores.cost),
        ):  # fmt: skip
            money = np.array([row[f"{name}_micros_{arm}"] for row in found])
            assert np.abs(money - values[:, k].astype(float) * 1e6).max() <= 0.5
    response = np.array([row["response_propensity"] for row in found], dtype=np.float32)
    assert response.tobytes() == scores.response.tobytes()
    assert not {"action", "arm"} & set(found[0])
    told = jobs.manifest(client, job_id)
    assert (told["offers"], told["expected_cost_micros"], told["reasons"]) == (0, 0, {})


def test_a_filter_lets_through_whom_it_says(client: Client, shop: Shop) -> None:
    people = shop.population
    wanted = {
        "all": [
            {"feature": "order_days_365d", "op": ">=", "value": 5},
            {"not": {"segment": "tier", "in": ["champion"]}},
        ]
    }
    found = jobs.rows(client, jobs.done(client, client.folder, filter=wanted))
    through = (people.rfm[:, 1] >= 5) & (people.tier.texts() != "champion")
    assert 10 < through.sum() < 290
    assert [row["customer_id"] for row in found] == people.customer_id[through].astype(str).tolist()
    nobody = {"feature": "order_days_365d", "op": ">", "value": 10_000}
    job_id = jobs.done(client, client.folder, filter=nobody, formats=["ndjson", "csv", "parquet"])
    told = jobs.manifest(client, job_id)
    assert (told["rows"], [file["rows"] for file in told["files"]]) == (0, [0, 0, 0])
    assert jobs.download(client, job_id, "part-0000.csv").text.startswith('"customer_id",')


@pytest.mark.parametrize("size", [32, 300])
def test_the_size_of_chunks_changes_nothing(shop: Shop, tmp_path: Path, size: int) -> None:
    found = []
    for name, chunk in (("a", size), ("b", 5000)):
        with serving(shop.scorer(), f"sqlite:///{tmp_path / name}.db") as client:
            job_id = jobs.queue(client)
            assert jobs.worker(client, tmp_path / name, chunk=chunk).run_one()
            rows = jobs.rows(client, job_id)
            found.append([{k: row[k] for k in row if k != "decision_id"} for row in rows])
    assert found[0] == found[1]


def test_pieces_of_a_coupon_are_not_handed_out_twice(shop: Shop, tmp_path: Path) -> None:
    offers = [
        o.model_copy(update={"stock": 9 if o.coupon_id == "c5" else None})
        for o in shop.config.offers
    ]
    config = shop.config.model_copy(update={"offers": offers})
    with serving(shop.scorer(config=config), tmp_path) as client:
        post(client, asked(*ALL[:60]))
        found = jobs.rows(client, jobs.done(client, tmp_path))
        with client.service.log.read() as connection:
            given = connection.execute(select(coupon_stock.c.given)).scalar_one()
        assert sum(row["coupon_id"] == "c5" for row in found) == given == 9
        assert sum(row["coupon_id"] == "p10" for row in found) > 9
        spent(client)


def test_the_worst_case_is_reserved_where_a_cap_must_hold_to_the_cent(client: Client) -> None:
    put(client, budget={"cap_micros": 100_000_000, "mode": "worst_case"})
    found = jobs.rows(client, jobs.done(client, client.folder, "solo"))
    # 5 off and 0.02 for the contact, each: 19 of them fit into 100.
    assert sum(row["action"] == "offer" for row in found) == 19
    assert spent(client, "solo") == 19 * 5_020_000


def test_a_safety_factor_is_reserved_on_top_of_what_is_expected(client: Client) -> None:
    cap = 60_000_000
    put(client, budget={"cap_micros": cap, "safety_factor": 1.25})
    found = jobs.rows(client, jobs.done(client, client.folder, "solo"))
    offers = [row["expected_cost_micros"] for row in found if row["action"] == "offer"]
    assert 0.93 * cap < spent(client, "solo") <= cap
    assert 0 <= spent(client, "solo") - 1.25 * sum(offers) <= len(offers) * 2


# What the log knows


def test_offers_of_other_campaigns_count_against_caps(client: Client) -> None:
    first = {r["customer_id"]: r for r in jobs.rows(client, jobs.done(client, client.folder))}
    put(client, contact_caps=[{"max": 1, "days": 7}])
    found = jobs.rows(client, jobs.done(client, client.folder, "solo"))
    for row in found:
        if first[row["customer_id"]]["action"] == "offer":
            assert row["reason"] == "contact_cap"
            assert row["retry_at"] == "2026-01-08T00:00:00Z"
    assert any(row["action"] == "offer" for row in found)


def test_a_paused_campaign_offers_nothing(client: Client) -> None:
    post(client, {}, "/v1/campaigns/spring/pause")
    job_id = jobs.done(client, client.folder)
    assert jobs.manifest(client, job_id)["reasons"] == {"campaign_paused": 300}
    assert spent(client) == 0


def test_after_a_pause_in_the_middle_no_offer_commits(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_pause: list[int] = []

    def pause() -> None:
        with client.service.log.write() as connection:
            Campaigns(client.service.log).pause(connection, "spring", "", now_micros())
        at_pause.append(spent(client))

    during(monkeypatch, pause, after=2)
    job_id = jobs.queue(client)
    assert jobs.worker(client, client.folder, chunk=50).run_one()
    found = jobs.rows(client, job_id)
    assert 0 < at_pause[0] == spent(client)
    assert {row["reason"] for row in found[100:]} == {"campaign_paused"}
    assert sum(row["expected_cost_micros"] for row in found) == at_pause[0]


def test_a_campaign_that_is_changed_in_the_middle_is_planned_anew(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, budget={"cap_micros": 60_000_000, "safety_factor": 1.0})
    cap = 40_000_000

    def lower() -> None:
        log = client.service.log
        with log.write() as connection:
            campaigns = Campaigns(log)
            entry = campaigns.get(connection, "solo")
            assert entry is not None
            body = json.loads(entry.resource)
            body["budget"]["cap_micros"] = cap
            assert CampaignBody(**body)
            assert campaigns.replace(connection, entry, json.dumps(body), cap, now_micros())

    calls = during(monkeypatch, lower, after=2)
    job_id = jobs.queue(client, "solo")
    assert jobs.worker(client, client.folder, chunk=50).run_one()
    assert len(calls) == 2 + 1 + 6  # two chunks, the one that is refused, and all of them again
    found = jobs.rows(client, job_id)
    assert 0.9 * cap < spent(client, "solo") <= cap
    assert sum(row["expected_cost_micros"] for row in found) == spent(client, "solo")
    assert not any(row["sticky_hit"] for row in found)  # they are this job's own
    told = jobs.manifest(client, job_id)
    assert (told["rows"], told["policy_version"]) == (300, "2")


def test_who_leaves_in_the_middle_is_offered_nothing_and_who_is_erased_is_not_written(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = jobs.rows(client, jobs.done(client, client.folder, dry_run=True))
    last = [row["customer_id"] for row in told[250:] if row["action"] == "offer"]
    leaving, erased, early = last[0], last[1], told[0]["customer_id"]

    def leave() -> None:
        event = {
            "event_id": "e-1", "type": "unsubscribed", "customer_id": leaving,
            "occurred_at": "2026-11-01T00:00:00Z",
        }  # fmt: skip
        assert post(client, {"events": [event]}, "/v1/events").json()["accepted"] == 1
        for customer in (erased, early):
            assert client.request("DELETE", f"/v1/customers/{customer}").status_code == 202

    during(monkeypatch, leave, after=3)
    job_id = jobs.queue(client)
    assert jobs.worker(client, client.folder, chunk=50).run_one()
    found = {row["customer_id"]: row for row in jobs.rows(client, job_id)}
    assert (found[leaving]["action"], found[leaving]["reason"]) == ("none", "no_consent")
    assert set(ALL) - set(found) == {erased}  # the other one was written before
    assert jobs.manifest(client, job_id)["rows"] == 299
    assert found[REFUSED]["reason"] == "no_consent"
    spent(client)
    again = jobs.rows(client, jobs.done(client, client.folder))
    assert set(ALL) - {row["customer_id"] for row in again} == {erased, early}


def test_an_offer_of_another_server_in_the_middle_stands(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def decide() -> None:
        made.extend(post(client, asked(*ALL[200:])).json()["decisions"])

    during(monkeypatch, decide, after=2)
    job_id = jobs.queue(client)
    assert jobs.worker(client, client.folder, chunk=50).run_one()
    found = jobs.rows(client, job_id)
    for one, row in zip(made, found[200:], strict=True):
        if one["reason"] in STICKY:
            assert row["sticky_hit"]
            assert row["decision_id"] == one["decision_id"]
    assert spent(client) <= 120_000_000
    assert sum(row["expected_cost_micros"] for row in found) == spent(client)


def test_cancelling_takes_effect_between_chunks_and_leaves_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tables(client)
    added: list[int] = []
    whole = Audience.add

    def add(self: Audience, *given: Any) -> None:
        added.append(1)
        whole(self, *given)
        if len(added) == 4:
            answer = client.request("DELETE", f"/v1/jobs/{job_id}")
            assert answer.json()["state"] == "cancelled"

    monkeypatch.setattr(Audience, "add", add)
    job_id = jobs.queue(client)
    assert jobs.worker(client, client.folder, chunk=10).run_one()
    assert len(added) == 4
    assert jobs.state(client, job_id)["progress"] == {"rows_done": 30, "rows_total": 300}
    assert tables(client) == before
    assert list((client.folder / "jobs" / "spring").iterdir()) == []
    assert jobs.download(client, job_id, "manifest.json").status_code == 409


def test_a_defect_is_tried_three_times_and_told_without_its_cause(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(self: Audience, connection: Any) -> None:
        raise RuntimeError(f"a defect of {ALL[0]}")

    monkeypatch.setattr(Audience, "plan", plan)
    job_id = jobs.queue(client)
    worker = jobs.worker(client, client.folder)
    for attempt in (1, 2, 3):
        assert worker.run_one()
        assert jobs.state(client, job_id)["attempt"] == attempt
    found = jobs.state(client, job_id)
    assert (found["state"], found["error"]) == ("failed", "internal")
    assert not worker.run_one()
    assert caplog.text.count(f"defect in job {job_id}: RuntimeError at test_audiences.py:") == 3
    assert not any(customer in caplog.text for customer in ALL)


def test_a_worker_takes_up_the_snapshot_of_today(client: Client, shop: Shop) -> None:
    """A filter that the snapshot of the request knew, and that of the worker does not."""
    job_id = jobs.queue(client, filter={"feature": "recency_days", "op": ">", "value": 1})
    with client.service.log.write() as connection:
        from sqlalchemy import update

        from serving.log.schema import jobs as table

        text = json.dumps(
            {"campaign_id": "spring", "filter": {"feature": "gone", "op": ">", "value": 1}}
        )
        connection.execute(update(table).values(request=text))
    worker: Worker = jobs.worker(client, client.folder)
    assert worker.run_one()
    found = jobs.state(client, job_id)
    assert (found["state"], found["error"]) == ("failed", "filter")


def test_a_log_that_is_full_and_has_room_again_loses_and_doubles_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = client.service.log

    def limit(pages: int) -> None:
        with log.writing.connect() as connection:  # the pool gives out one at a time
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        with log.read() as connection:
            limit(int(connection.exec_driver_sql("PRAGMA page_count").scalar_one()))

    calls = during(monkeypatch, fill, after=2)
    job_id = jobs.queue(client)
    worker = jobs.worker(client, client.folder, chunk=60)
    with pytest.raises(LogUnavailable):
        worker.run_one()
    assert len(calls) > 2
    stands = spent(client)
    assert stands > 0
    left = jobs.state(client, job_id)
    assert (left["state"], left["progress"]["rows_done"]) == ("committing", 60 * (len(calls) - 1))
    assert list((client.folder / "jobs" / "spring").iterdir()) == []
    limit(2**30)
    assert worker.run_one()
    found = jobs.rows(client, job_id)
    assert (len(found), jobs.state(client, job_id)["attempt"]) == (300, 2)
    assert spent(client) == sum(row["expected_cost_micros"] for row in found) > stands
    with log.read() as connection:
        assert connection.execute(select(func.count()).select_from(decisions)).scalar() == 300


def test_a_worker_takes_up_what_is_current_and_goes_on_with_the_old_where_it_is_refused(
    client: Client, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    root = client.folder / "data"
    shutil.copytree(shop.root / "data", root)
    home = snapshots_folder(shop.config, root)
    people = replace(shop.population, consent=np.zeros(len(shop.population), dtype=bool))
    folder = write_snapshot(people, shop.model, shop.config, client.scorer.salt, root)
    worker = jobs.worker(client, root)
    job_id = jobs.queue(client, dry_run=True)
    assert worker.run_one()
    told = jobs.manifest(client, job_id)
    assert (told["snapshot_id"], told["reasons"]) == (folder.name, {"no_consent": 300})
    (home / "CURRENT").write_text(json.dumps({"snapshot_id": shop.snapshot.snapshot_id}))
    (home / shop.snapshot.snapshot_id / "consent.npy").write_bytes(b"cut")
    job_id = jobs.queue(client, dry_run=True)
    assert worker.run_one()
    assert jobs.manifest(client, job_id)["snapshot_id"] == folder.name
    assert "was refused, the old ones go on" in caplog.text
