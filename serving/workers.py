"""Run the server: one worker in this process, or several that are watched and replaced.

Workers are spawned, never forked: a process that forks after a model is loaded can hang. They share
one listening socket and the pages of the mapped snapshot.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from features.config import Config, load_config
from serving.app import create_app
from serving.door import BACKLOG, SharingServer, bind, open_door
from serving.gate import Holder
from serving.jobs_process import Beside
from serving.limits import SharedQuota
from serving.load import resolve
from serving.loop import LOOP
from serving.metrics import FOLDER, empty_folder, forget
from serving.salt import load_salt
from serving.scorer import Scorer
from serving.snapshot import ensure_snapshot
from serving.stalled import Stalled
from serving.startup import open_service, register_configured
from serving.waiting_room import waiting_room

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# After the last sign of life of a worker's event loop, it is replaced.
HUNG_SECONDS = 30.0
FINISH_SECONDS = 20
# Longer than load balancers keep a connection that nobody uses (60 s is usual): they end it first,
# and nothing is sent into one that is just being closed.
KEEP_SECONDS = 75
# So many workers that end within a minute are a defect that restarts do not mend.
MOST_RESTARTS = 5
# The threads of the log wait for the event loop no longer than this, and it for them.
SWITCH_SECONDS = 0.0005
log = logging.getLogger("serving")


@dataclass(frozen=True)
class Start:
    """How to start, as a spawned process needs it."""

    config: str
    overrides: tuple[str, ...]
    host: str
    port: int
    workers: int
    drain_seconds: float
    jobs: bool = True
    counts: str = ""
    """The file in which several workers count what keys ask; `number`: which worker this is."""
    number: int = 0
    bound: bool = False
    """Each worker stays on a core of its own."""

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    def beside(self, config: Config) -> AbstractContextManager[object]:
        """What runs the process of the jobs, where this server is to."""
        if not self.jobs:
            return nullcontext()
        sets = [part for override in self.overrides for part in ("--set", override)]
        return Beside(config, ["--config", self.config, *sets])


def prepare(config: Config, start: Start, door: socket.socket | None = None) -> Holder:
    """Everything that answers requests, loaded and checked; what comes to the door while that takes
    its time is told so.

    Raises ConfigError and others of features.errors for what a user can mend.
    """
    salt = load_salt(simulated=config.source.kind == "simulated", loopback=start.loopback)
    # First what takes no time and may refuse.
    service = open_service(config, salt, loopback=start.loopback)
    if start.counts:
        service.quota = SharedQuota(path=start.counts, worker=start.number, workers=start.workers)
    with nullcontext() if door is None else waiting_room(door):
        model = resolve(config)
        scorer = Scorer(model, ensure_snapshot(config, model, salt), config, salt)
        register_configured(service, scorer)
    return Holder(scorer, service)


def describe(holder: Holder, start: Start) -> None:
    """Log what is served, and where."""
    scorer, service = holder.get(), holder.open()
    log.info(
        "model %s version %s, snapshot %s of %s customers as of %s",
        scorer.model.name,
        scorer.model.version,
        scorer.snapshot.snapshot_id,
        f"{len(scorer.snapshot.population):,}",
        scorer.snapshot.as_of.isoformat(),
    )
    if scorer.degraded:
        log.warning("degraded: %s", ", ".join(scorer.degraded))
    log.info("decision log: %s", service.log.place)
    if not service.has_keys:
        log.warning("no API keys: anybody on this machine may ask, and nobody else")
    log.info("listening on %s, port %s, %s worker(s)", start.host, start.port, start.workers)


class Lines:
    """Writes request lines to stderr ten times a second, and not one by one: each would cost a call
    of the system. To hand them over as records of `logging` takes a tenth of the time of a request.
    """

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.add = self._lines.append

    def flush(self) -> None:
        if self._lines:
            text = b"\n".join([*self._lines, b""]).decode()
            self._lines.clear()
            with suppress(OSError, ValueError):  # nobody reads the log any more
                sys.stderr.write(text)
                sys.stderr.flush()


def worth_telling(record: logging.LogRecord) -> bool:
    """Not that an upgrade was not taken up: Java's client offers one with every request, and each
    is answered as if it had not."""
    message = record.getMessage()
    return not message.startswith(("Unsupported upgrade", "No supported WebSocket library"))


class Server(SharingServer):
    """A server that says it is not ready for a while before it stops to listen, so that nobody is
    sent to a closed door."""

    def __init__(
        self,
        settings: uvicorn.Config,
        holder: Holder,
        drain: float,
        beat: Callable[[], None],
        lines: Lines,
    ) -> None:
        super().__init__(settings)
        self._holder, self._drain, self._beat, self._lines = holder, drain, beat, lines
        self._until: float | None = None
        self._stalled = Stalled()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain; the second stops at once."""
        if self._holder.draining or self._drain <= 0:
            super().handle_exit(sig, frame)
            return
        self._holder.draining = True
        self._until = time.monotonic() + self._drain

    async def on_tick(self, counter: int) -> bool:
        self._beat()
        self._lines.flush()
        if counter % 10 == 0:
            self._let_go()
        if self._until is not None and time.monotonic() >= self._until:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._lines.flush()  # uvicorn raises the signal again when it is done, which ends us

    def _let_go(self) -> None:
        """End connections of clients that neither send nor read."""
        ended = self._stalled.end(self.server_state.connections)
        if ended and self._holder.service is not None:
            self._holder.service.metrics.rejections.labels("stalled").inc(ended)


def run(config: Config, start: Start) -> int:
    """Serve until a signal; returns the exit code."""
    with open_door(start.host, start.port) as door:
        return _run(config, start, door)


def _run(config: Config, start: Start, door: socket.socket) -> int:
    if start.workers == 1:
        holder = prepare(config, start, door)
        describe(holder, start)
        with start.beside(config):
            return serve(holder, start, door, lambda: None)
    folder = Path("data") / "metrics" / config.name
    empty_folder(folder)
    os.environ[FOLDER] = str(folder.resolve())
    # Once here: what a user must mend is told once, and a missing snapshot is built once.
    holder = prepare(config, start, door)
    describe(holder, start)
    holder.open().close()
    with tempfile.NamedTemporaryFile(prefix="quota-") as counts:
        counts.truncate(SharedQuota.size(start.workers))
        start = replace(start, counts=counts.name)
        with start.beside(config):
            return Watch(start, door).run()


def serve(holder: Holder, start: Start, door: socket.socket, beat: Callable[[], None]) -> int:
    """One worker, in this process."""
    settings = uvicorn.Config(
        create_app(holder, renew=True),
        access_log=False,
        log_level="warning",
        # Named, or uvicorn takes what else it finds installed (ADR 0020).
        http="h11",
        loop=LOOP,
        ws="none",
        server_header=False,
        proxy_headers=False,  # nothing asks who the client is
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        limit_concurrency=4096,
    )
    logging.getLogger("uvicorn.error").addFilter(worth_telling)
    sys.setswitchinterval(SWITCH_SECONDS)
    if start.bound:
        bind(start.number)
    lines = Lines()
    holder.tell = lines.add
    # Hundreds of thousands of objects of the libraries stay for good. To look through all of them
    # again would hold up a request for tenths of a second.
    gc.collect()
    gc.freeze()
    server = Server(settings, holder, start.drain_seconds, beat, lines)
    server.alone = start.workers == 1
    server.run([door])
    return 0 if server.started else 1


def worker(start: Start, door: socket.socket, beat: Any, level: int) -> None:
    """A spawned worker: load everything, then serve at the shared door."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("serving").setLevel(level)
    config = load_config(start.config, list(start.overrides))
    holder = prepare(config, start)

    def alive() -> None:
        beat.value = time.monotonic()

    sys.exit(serve(holder, start, door, alive))


class Watch:
    """Keeps the workers running: one that ends or hangs is replaced."""

    def __init__(self, start: Start, door: socket.socket) -> None:
        self._start, self._door = start, door
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Any, Any] = {}
        self._numbers: dict[Any, int] = {}
        self._stopping = False
        self._ended: list[float] = []

    def run(self) -> int:
        """Until a signal. Exit code 1 if workers keep ending."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)
        for _ in range(self._start.workers):
            self._add()
        while self._workers:
            wait([process.sentinel for process in self._workers], timeout=1.0)
            for process, beat in list(self._workers.items()):
                if not process.is_alive():
                    del self._workers[process], self._numbers[process]
                    forget(process.pid)
                    self._replace(process)
                elif beat.value and time.monotonic() - beat.value > HUNG_SECONDS:
                    log.error("worker %s gives no sign of life and is replaced", process.pid)
                    process.kill()
        return 1 if len(self._ended) > MOST_RESTARTS else 0

    def _add(self) -> None:
        beat = self._context.Value("d", 0.0, lock=False)
        # One that is replaced leaves its number, and what it has counted, to its successor.
        number = min(set(range(self._start.workers)) - set(self._numbers.values()))
        process = self._context.Process(
            target=worker,
            args=(replace(self._start, number=number), self._door, beat, log.level),
            name="worker",
        )
        process.start()
        self._numbers[process] = number
        self._workers[process] = beat

    def _replace(self, process: Any) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        self._ended = [at for at in self._ended if now - at < 60.0] + [now]
        log.error("worker %s ended with %s", process.pid, process.exitcode)
        if len(self._ended) > MOST_RESTARTS:
            log.error("workers keep ending; stopping")
            self._stop(signal.SIGTERM, None)
        else:
            self._add()

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self._stopping = True
        for process in self._workers:
            if process.is_alive():
                process.terminate()
