"""Metrics for Prometheus. No label names a customer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one worker; with several workers, they add up in the folder that
    PROMETHEUS_MULTIPROC_DIR names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name, registry = "persuadables", self.registry
        self.request_seconds = Histogram(
            "request_seconds", "Time to answer", ("route", "status"),
            namespace=name, buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.rows = Counter(
            "rows", "Customers and events asked about", ("route",), namespace=name,
            registry=registry,
        )  # fmt: skip
        self.reasons = Counter(
            "decisions", "Decisions by reason", ("reason", "model_version"), namespace=name,
            registry=registry,
        )  # fmt: skip
        self.rejections = Counter(
            "rejections", "Requests refused by quota or overload, and stalled connections",
            ("code",), namespace=name, registry=registry,
        )  # fmt: skip
        self.commit_seconds = Histogram(
            "commit_seconds", "Time of a group of decisions until its commit", namespace=name,
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_depth = Gauge(
            "queue_depth", "Requests that wait for the log", namespace=name, registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.budget_left = Gauge(
            "budget_left_micros", "What a campaign may still promise", ("campaign_id",),
            namespace=name, registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.overshoot = Gauge(
            "budget_overshoot_micros", "What was realised beyond a cap", ("campaign_id",),
            namespace=name, registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.jobs = Gauge(
            "jobs", "Audience jobs of the last days by state", ("state",), namespace=name,
            registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.jobs_waiting = Gauge(
            "jobs_waiting_seconds", "For how long the oldest queued job has waited",
            namespace=name, registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.snapshot_age = Gauge(
            "snapshot_age_seconds", "Age of the features", namespace=name, registry=registry,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.model_age = Gauge(
            "model_age_seconds", "Time since the model was registered", namespace=name,
            registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.stock_left = Gauge(
            "stock_left", "Pieces of a coupon that may still be offered", ("coupon_id",),
            namespace=name, registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.load_failures = Counter(
            "load_failures", "Models and snapshots that were refused", ("what",), namespace=name,
            registry=registry,
        )  # fmt: skip
        self.clock_steps_back = Counter(
            "clock_steps_back", "The clock went back by more than a second", namespace=name,
            registry=registry,
        )  # fmt: skip
        self.degraded = Gauge(
            "degraded", "1 while it holds, as /v1/models/current tells it", ("what",),
            namespace=name, registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._steps = 0
        self._degraded: set[str] = set()
        self._took: dict[tuple[str, int], Histogram] = {}
        self._asked: dict[str, Counter] = {}

    def now_degraded(self, what: Iterable[str]) -> None:
        """Set the gauge of what is degraded, and clear that of what was."""
        now = set(what)
        for each in self._degraded | now:
            self.degraded.labels(each).set(each in now)
        self._degraded |= now

    def answered(self, route: str, status: int, seconds: float, rows: int) -> None:
        """Count an answer; `route` is the template."""
        # To find them by their labels takes longer than to count.
        took = self._took.get((route, status))
        if took is None:
            took = self._took[route, status] = self.request_seconds.labels(route, str(status))
        took.observe(seconds)
        if rows:
            asked = self._asked.get(route)
            if asked is None:
                asked = self._asked[route] = self.rows.labels(route)
            asked.inc(rows)

    def decided(self, reasons: Mapping[str, int], model_version: str) -> None:
        for reason, count in reasons.items():
            self.reasons.labels(reason, model_version).inc(count)

    def clock_steps(self, so_far: int) -> None:
        if so_far > self._steps:
            self.clock_steps_back.inc(so_far - self._steps)
            self._steps = so_far

    def text(self) -> bytes:
        """All metrics, of all workers where there are several."""
        if os.environ.get(FOLDER):
            everyone = CollectorRegistry()
            MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
            return generate_latest(everyone)
        return generate_latest(self.registry)


def empty_folder(folder: Path) -> None:
    """Make the folder of several workers' metrics, without those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.db"):
        old.unlink(missing_ok=True)


def forget(process: int) -> None:
    """What waited in a worker that has ended waits no more; its counts stay."""
    if os.environ.get(FOLDER):
        mark_process_dead(process)  # type: ignore[no-untyped-call]
