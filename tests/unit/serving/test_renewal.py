"""A server takes up what has become current, whole, and nothing that does not verify."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import renewal
from serving.gate import Holder
from serving.load import LoadedModel, write_atomically
from serving.log.engine import LogUnavailable
from serving.renewal import current_pair, keep_current, renewed, sync, sync_forever
from serving.snapshot import write_snapshot
from serving.startup import register_configured
from tests.unit.serving.answering import Client, asked, make_service
from tests.unit.serving.small_shop import SALT, Shop, keep_bundle
from uplift.errors import BundleError


@pytest.fixture
def root(shop: Shop, tmp_path: Path) -> Path:
    """A folder of its own with the shop's bundle and snapshot."""
    shutil.copytree(shop.root / "data", tmp_path / "data")
    return tmp_path / "data"


def second_model(shop: Shop, root: Path) -> LoadedModel:
    """Another bundle, which becomes the current one."""
    other = replace(shop.model.bundle, info={"learner": "t", "again": True})
    kept = keep_bundle(other, root, shop.config.name)
    current = root / "bundles" / shop.config.name / "current.json"
    current.write_text(json.dumps(json.loads(current.read_bytes()) | {"version": "4"}))
    return replace(kept, version="4")


def test_nothing_new_is_nothing_to_do(shop: Shop, root: Path) -> None:
    assert current_pair(shop.config, root) == (shop.model.sha256, shop.snapshot.snapshot_id)
    assert renewed(shop.scorer(), root) is None
    assert renewed(shop.scorer(), root / "nowhere") is None


def test_a_new_model_comes_with_its_snapshot_and_the_way_back_is_open(
    shop: Shop, root: Path
) -> None:
    first = shop.scorer()
    model = second_model(shop, root)
    with pytest.raises(Exception, match="bundle_sha256 of the served model"):
        renewed(first, root)  # the snapshot is still that of the old model
    write_snapshot(shop.population, model, shop.config, SALT, root)
    second = renewed(first, root)
    assert second is not None
    assert (second.model.version, second.model.sha256) == ("4", model.sha256)
    assert renewed(second, root) is None
    keep_bundle(shop.model.bundle, root / "aside", shop.config.name)
    shutil.copy(
        root / "aside" / "bundles" / shop.config.name / "current.json",
        root / "bundles" / shop.config.name,
    )
    snapshot = sync(shop.config, SALT, root=root, fetch=lambda _: shop.model)
    back = renewed(second, root)
    assert back is not None
    assert (back.model.sha256, back.snapshot.snapshot_id) == (
        shop.model.sha256,
        snapshot.snapshot_id,
    )


def test_a_cut_bundle_is_refused(shop: Shop, root: Path) -> None:
    model = second_model(shop, root)
    write_snapshot(shop.population, model, shop.config, SALT, root)
    victim = max((root / "bundles" / "spring" / model.sha256).iterdir(), key=lambda p: len(p.name))
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(BundleError):
        renewed(shop.scorer(), root)


def test_under_load_every_answer_names_one_pair(
    shop: Shop, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from serving.app import create_app

    holder = Holder(shop.scorer(), make_service(shop.scorer(), f"sqlite:///{tmp_path / 'l.db'}"))
    app, seen = create_app(holder), []

    async def ask(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        n = 0
        while not done.is_set():
            n += 1
            answer = await client.post(
                "/v1/decisions", json=asked(f"c-{n % 300:03d}", dry_run=bool(n % 2))
            )
            assert answer.status_code == 200, answer.text
            found = answer.json()
            seen.append((found["model_version"], found["snapshot_id"]))

    async def run() -> None:
        done = asyncio.Event()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            renewing = asyncio.create_task(keep_current(holder, root, 0.02))
            asking = [asyncio.create_task(ask(client, done)) for _ in range(4)]
            await asyncio.sleep(0.2)
            model = second_model(shop, root)
            await asyncio.sleep(0.1)  # the pair does not go together yet
            assert holder.scorer is not None
            assert holder.scorer.model.version == "3"
            write_snapshot(shop.population, model, shop.config, SALT, root)
            for _ in range(500):
                if holder.scorer.model.version == "4":
                    break
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            done.set()
            await asyncio.gather(*asking)
            renewing.cancel()

    asyncio.run(run())
    holder.open().close()
    pairs = set(seen)
    assert {version for version, _ in pairs} == {"3", "4"}
    assert len(pairs) == 2
    assert seen[-1][0] == "4"


def test_a_log_that_is_away_in_the_moment_of_a_swap_delays_it(
    shop: Shop,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    holder = Holder(shop.scorer(), make_service(shop.scorer(), f"sqlite:///{tmp_path / 'l.db'}"))
    faults = [LogUnavailable("away"), OSError("no more open files")]

    def failing(*asked: Any) -> None:
        if faults:
            raise faults.pop(0)
        register_configured(*asked)

    monkeypatch.setattr(renewal, "register_configured", failing)
    write_snapshot(shop.population, second_model(shop, root), shop.config, SALT, root)
    loads: list[Any] = []
    monkeypatch.setattr(renewal, "renewed", lambda *a: loads.append(a) or renewed(*a))

    async def run() -> None:
        renewing = asyncio.create_task(keep_current(holder, root, 0.01))
        until = time.monotonic() + 20
        while holder.get().model.version == "3" and time.monotonic() < until:
            assert not renewing.done()
            await asyncio.sleep(0.01)
        renewing.cancel()

    asyncio.run(run())
    holder.open().close()
    assert holder.get().model.version == "4"
    assert caplog.text.count("waits for the log: away") == 1
    assert caplog.text.count("has to wait, the old ones go on: OSError") == 1
    assert holder.open().metrics.load_failures.labels("pair")._value.get() == 1
    assert len(loads) == 1  # what was loaded waits


def test_what_the_sync_found_is_told_while_it_holds(shop: Shop, root: Path, tmp_path: Path) -> None:
    from serving.app import create_app

    holder = Holder(shop.scorer(), make_service(shop.scorer(), f"sqlite:///{tmp_path / 'l.db'}"))
    client = Client(create_app(holder))

    def told(found: list[str]) -> tuple[list[str], str]:
        write_atomically(root / "bundles" / shop.config.name / "degraded.json", found)

        async def look() -> None:
            renewing = asyncio.create_task(keep_current(holder, root, 0.01))
            await asyncio.sleep(0.1)
            renewing.cancel()

        asyncio.run(look())
        return client.get("/v1/models/current").json()["degraded"], client.get("/metrics").text

    try:
        start = client.get("/v1/models/current").json()["degraded"]
        shown, metrics = told(["registry_unreachable"])
        assert shown == ["registry_unreachable", *start]
        assert 'persuadables_degraded{what="registry_unreachable"} 1.0' in metrics
        shown, metrics = told([])
        assert shown == start
        assert 'persuadables_degraded{what="registry_unreachable"} 0.0' in metrics
    finally:
        holder.open().close()


def test_a_sync_that_fails_is_tried_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [OSError(28, "No space left on device"), KeyError("c-001"), SystemExit]

    def failing(*_: Any) -> None:
        raise faults.pop(0)

    monkeypatch.setattr(renewal, "sync", failing)
    monkeypatch.setattr(renewal.os, "nice", lambda _: 0)
    with pytest.raises(SystemExit):
        sync_forever(shop.config, SALT, 0.0)
    assert "No space left on device" in caplog.text
    assert "defect while syncing: KeyError at test_renewal.py" in caplog.text
    assert "c-001" not in caplog.text
