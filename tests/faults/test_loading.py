"""Models and snapshots that are damaged or away, and workers that hang."""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import load, workers
from serving.app import create_app
from serving.gate import Holder
from serving.load import MlflowRegistry, Registered, RegistryUnreachable, resolve
from serving.metrics import FOLDER
from serving.renewal import keep_current
from serving.snapshot import ensure_snapshot
from tests.unit.serving.answering import Client, asked, make_service, post
from tests.unit.serving.small_shop import SALT, Shop, keep_bundle, make_bundle
from tests.unit.serving.test_load import Shelf
from uplift.bundle import ScoringBundle

IDS = [f"c-{i:03d}" for i in range(300)]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, held so that no other process can take it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.mark.filterwarnings("ignore")
def test_a_registry_that_refuses_connections_leaves_the_last_good_bundle(
    shop: Shop, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry(f"http://127.0.0.1:{closed_port}")
    with pytest.raises(RegistryUnreachable):
        registry.find("spring", "champion")
    model = resolve(shop.config, registry, shop.root / "data")
    assert (model.version, model.degraded) == (shop.model.version, ("registry_unreachable",))


@pytest.fixture
def root(shop: Shop, tmp_path: Path) -> Path:
    """The shop's bundle and snapshot, to be damaged."""
    shutil.copytree(shop.root / "data", tmp_path / "data")
    return tmp_path / "data"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_bundle_that_kills_whoever_loads_it_is_refused(
    shop: Shop, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut before its hashes were taken, so that they all agree: LightGBM reads past the text's end,
    and what that does to its process (an abort, a segmentation fault, an error) is luck."""
    deadly = Path(
        shutil.copytree(root / "bundles" / "spring" / shop.model.sha256, tmp_path / "deadly")
    )
    victim = sorted(deadly.glob("*.txt"))[0]
    cut(victim)
    manifest = json.loads((deadly / "manifest.json").read_bytes())
    content = victim.read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][victim.name] |= entry
    (deadly / "manifest.json").write_text(json.dumps(manifest))
    sha256 = hashlib.sha256((deadly / "manifest.json").read_bytes()).hexdigest()
    model = resolve(shop.config, Shelf(deadly, Registered("8", sha256)), root)
    assert (model.version, model.degraded) == (shop.model.version, ("bundle_rejected",))
    assert "bundle_rejected (to load it ends a process with " in caplog.text
    assert not (root / "bundles" / "spring" / sha256).exists()
    # What servers look at still names the old one.
    assert load.current_model(shop.config, root).sha256 == shop.model.sha256


@pytest.mark.parametrize(
    ("proof", "seconds", "reason"),
    [
        ("import time; time.sleep(60)", 0.5, "could not be loaded within 0.5 seconds"),
        ("import os; os.abort()", 60.0, "to load it ends a process with signal 6"),
        ("raise ValueError('no tree')", 60.0, "to load it ends a process with ValueError: no tree"),
    ],
)
def test_a_bundle_that_cannot_be_proved_is_refused_and_its_reason_told(
    shop: Shop,
    bundle: ScoringBundle,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    proof: str,
    seconds: float,
    reason: str,
) -> None:
    saved = bundle.save(tmp_path / "new")
    shelf = Shelf(tmp_path / "new", Registered("8", saved.sha256))
    with monkeypatch.context() as patched:
        patched.setattr(load, "PROOF", proof)
        patched.setattr(load, "PROOF_SECONDS", seconds)
        model = resolve(shop.config, shelf, root)
    assert (model.version, model.degraded) == (shop.model.version, ("bundle_rejected",))
    assert reason in caplog.text
    assert resolve(shop.config, shelf, root).version == "8"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_format(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 999}))


DAMAGES: list[tuple[str, str, Any]] = [
    ("bundle", "*.txt", cut),
    ("bundle", "*.txt", flip),
    ("bundle", "manifest.json", other_format),
    ("snapshot", "reward.npy", cut),
    ("snapshot", "cost.npy", flip),
    ("snapshot", "manifest.json", other_format),
    ("snapshot", "manifest.json", Path.unlink),
]


@pytest.fixture(scope="module")
def bundle(shop: Shop) -> ScoringBundle:
    """Another release of the model."""
    return replace(make_bundle(shop.config), info={"learner": "new"})


@pytest.mark.parametrize(
    ("what", "pattern", "damage"), DAMAGES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_a_server_goes_on_with_the_old_pair_when_the_new_one_is_damaged(
    shop: Shop, bundle: ScoringBundle, root: Path, what: str, pattern: str, damage: Any
) -> None:
    """The new pair is current on the disk, then damaged, and the server looks at it."""
    service = make_service(shop.scorer(), f"sqlite:///{root / 'log.db'}")
    try:
        holder = Holder(shop.scorer(), service)
        client = Client(create_app(holder))
        before = post(client, asked(*IDS[:20], dry_run=True)).json()
        model = keep_bundle(bundle, root, shop.config.name)
        snapshot = ensure_snapshot(
            shop.config, model, SALT, root=root, build=lambda _: shop.population
        )
        home = (
            root / "bundles" / shop.config.name / model.sha256
            if what == "bundle"
            else root / "snapshots" / shop.config.name / snapshot.snapshot_id
        )
        damage(sorted(home.glob(pattern))[0])

        async def look() -> None:
            renewing = asyncio.create_task(keep_current(holder, root, 0.01))
            for _ in range(1000):
                await asyncio.sleep(0.01)
                if service.metrics.load_failures.labels("pair")._value.get():
                    break
            await asyncio.sleep(0.05)  # it is not tried again
            renewing.cancel()

        asyncio.run(look())
        assert service.metrics.load_failures.labels("pair")._value.get() == 1
        after = post(client, asked(*IDS[:20], dry_run=True)).json()
        assert after["decisions"] == before["decisions"]
        assert after["snapshot_id"] == before["snapshot_id"]
        assert client.get("/readyz").status_code == 200
    finally:
        service.close()


# Workers


def hung(start: Any, door: socket.socket, beat: Any, level: int) -> None:
    """A worker that gives one sign of life and then none."""
    beat.value = time.monotonic()
    for name in (f"gauge_livesum_{os.getpid()}.db", str(os.getpid())):
        (Path(os.environ[FOLDER]) / name).touch()
    time.sleep(600)


def ending(start: Any, door: socket.socket, beat: Any, level: int) -> None:
    """A worker that ends at once."""
    os._exit(3)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[workers.Watch]:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(workers, "HUNG_SECONDS", 0.5)
    # In a thread, signals are nobody's.
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    with socket.socket() as door:
        start = workers.Start("none.yaml", (), "127.0.0.1", 0, 1, 0.0)
        yield workers.Watch(start, door)


def test_a_worker_that_hangs_is_killed_and_replaced(
    watch: workers.Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "worker", hung)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("[0-9]*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    watch._stop(signal.SIGTERM, None)
    thread.join(30)
    assert not thread.is_alive()
    assert len(list(tmp_path.glob("[0-9]*"))) >= 2
    # What waited in a worker waits no more once it has ended.
    assert not list(tmp_path.glob("gauge_*"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_that_keep_ending_stop_the_server(
    watch: workers.Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "worker", ending)
    monkeypatch.setattr(workers, "MOST_RESTARTS", 1)
    with caplog.at_level("ERROR", logger="serving"):
        assert watch.run() == 1
    assert "workers keep ending" in caplog.text
    assert "ended with 3" in caplog.text
