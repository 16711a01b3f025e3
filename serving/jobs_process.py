"""The process of the jobs: started beside a server when there is one to do, or on its own.

Where nobody asks for audiences, there is no such process and no memory of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType

from features.config import Config
from serving.jobs import AGAIN_SECONDS, LOOK_SECONDS, Worker, current_scorer, lines
from serving.log.engine import LogUnavailable, log_url, open_log
from serving.log.jobs import Jobs
from serving.metrics import FOLDER
from serving.salt import load_salt
from serving.startup import open_service

# A process that has had nothing to do for so long ends.
IDLE_SECONDS = 60.0
STOP_SECONDS = 20.0
# What did not start, as where no model is on this disk, is tried again after so long.
REFUSED_SECONDS = 60.0
log = logging.getLogger("serving")


def work(
    config: Config,
    *,
    idle: float | None = None,
    parent: int | None = None,
    owner: str | None = None,
) -> int:
    """Do the jobs of a configuration's log in this process, until a signal, until there was
    nothing to do for `idle` seconds, or until the process `parent` has gone; returns the exit
    code. owner: the name under which jobs are held.

    Raises ConfigError and others for what a user can mend.
    """
    salt = load_salt(simulated=config.source.kind == "simulated")
    service = open_service(config, salt)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    lines.addHandler(handler)
    lines.propagate = False
    scorer, stopping = current_scorer(config, salt), _asked_to_stop(parent)
    Worker(service.log, scorer, owner=owner, stopping=stopping).run(idle)
    service.close()
    return 0


def _asked_to_stop(parent: int | None) -> Callable[[], bool]:
    """Whether a signal came, or the process that started this one has gone."""
    asked = threading.Event()

    def stop(sig: int, frame: FrameType | None) -> None:
        asked.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    return lambda: asked.is_set() or (parent is not None and os.getppid() != parent)


class Beside:
    """While it lasts, a process for jobs is started whenever there is one to do and none runs."""

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        self._log = open_log(log_url(config.name)[0])
        self._jobs = Jobs(self._log)
        # Not the folder of the servers' metrics: those of jobs are read from the log.
        self._environment = {k: v for k, v in os.environ.items() if k != FOLDER}
        self.owner = f"{os.getpid()}-{secrets.token_hex(12)}"
        self._command = [
            sys.executable, "-m", "serving", "jobs", *arguments, "--owner", self.owner,
            "--idle", str(IDLE_SECONDS), "--parent", str(os.getpid()),
        ]  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jobs", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._abandon()
        self._log.close()

    def _watch(self) -> None:
        again = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            if self._process is not None:
                code = self._process.poll()
                if code is None:
                    continue
                self._process = None
                self._abandon()
                if code:
                    log.error("the process of the jobs ended with %s", code)
                    again = time.monotonic() + (AGAIN_SECONDS if code < 0 else REFUSED_SECONDS)
            if time.monotonic() >= again and self._waiting():
                try:
                    self._process = subprocess.Popen(self._command, env=self._environment)
                except OSError as error:  # no memory, or too many processes, at the moment
                    log.error("the process of the jobs cannot be started: %s", error)
                    again = time.monotonic() + AGAIN_SECONDS

    def _abandon(self) -> None:
        """What the process held that has ended is open at once, and not when its lease is over."""
        with suppress(LogUnavailable), self._log.write() as connection:
            self._jobs.abandon(connection, self.owner)

    def _waiting(self) -> bool:
        with suppress(LogUnavailable), self._log.read() as connection:
            return self._jobs.any_open(connection)
        return False
