"""One training's learners on many rows: time and memory, and how they grow with the rows.

60 features, five arms and control, five folds, the settings and threads of a training. Ten
features make the outcome and the effects, the others are noise. Every row has an out-of-fold
effect from every learner, and every learner is judged on all of them: value of the best three
tenths against a random three tenths, AUTOC, QINI, uplift at three shares, deciles, calibration.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.learners import OURS, selected, top
from benchmarks.report import Options, peak_memory, progress, text_table
from benchmarks.worlds import training_set
from training.fit import LEAVES_OF_ROWS, TREES
from uplift.boosting import Binned, Settings
from uplift.data import FloatArray, TrainingSet, draw_folds
from uplift.effect_report import EffectReport
from uplift.learners import Fitted, make_learner
from uplift.nuisances import Problem, prepare
from uplift.scores import ScoreMatrix

Result = TypeVar("Result")
SEED = 3
ROWS = (50_000, 100_000)
FULL_ROWS = 1_000_000
FEATURES = 60
ARMS = 5
FOLDS = 5
SHARE = 0.3
SECONDS, BYTES = 20 * 60, 12e9


def experiment(rows: int) -> TrainingSet:
    """Arms with the probability 1 / 6 each; effects of .1 to .5 standard deviations of the noise,
    each following a feature of its own."""
    rng = np.random.default_rng([SEED, rows])
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    arm = rng.integers(0, ARMS + 1, rows)
    y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] * X[:, 2] + rng.standard_normal(rows, dtype=np.float32)
    for k in range(1, ARMS + 1):
        own = 0.1 * k * np.maximum(X[:, 2 + k], 0)
        y += np.where(arm == k, own, 0)
    assignment = np.full((rows, ARMS + 1), 1 / (ARMS + 1))
    return training_set(X, arm, y.astype(np.float64), assignment)


class Clock:
    """Wall and CPU seconds and the peak memory of each step; says when one begins and ends."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.steps: dict[str, tuple[float, float, int]] = {}

    def __call__(self, name: str, work: Callable[[], Result]) -> Result:
        progress(f"scale: {self.rows:,} rows: {name}")
        wall, cpu = time.monotonic(), time.process_time()
        with _Peak() as peak:
            result = work()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        self.steps[name] = (wall, cpu, peak.bytes)
        progress(f"scale: {self.rows:,} rows: {name}: {wall:.0f} s, {peak.bytes / 1e9:.2f} GB")
        return result

    def total(self) -> tuple[float, float, int]:
        wall, cpu, peak = zip(*self.steps.values(), strict=True)
        return sum(wall), sum(cpu), max(peak)


class _Peak:
    """The most memory that this process had resident while a step ran, looked at 20 times a
    second where the system says it, else since the program began."""

    def __enter__(self) -> _Peak:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident())
            if self._stop.wait(0.05):
                return


def resident() -> int:
    """Resident memory of this process now, bytes."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return peak_memory()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def judge(problem: Problem, oof: FloatArray, policy: FloatArray) -> float:
    """All the numbers of one learner; returns the gain over a random share of the same size."""
    matrix = ScoreMatrix(problem.gamma, problem.data.cluster)
    flat = np.full_like(policy, SHARE / policy.shape[1])
    gain = matrix.compare(policy, flat).value
    arm = oof.argmax(axis=1)
    rows = np.arange(len(oof))
    contrast = problem.gamma[rows, arm + 1] - problem.gamma[:, 0]
    report = EffectReport(oof[rows, arm], contrast, problem.data.cluster, SEED)
    assert len(report.estimates) > 5
    assert len(report.deciles) == 10
    return gain


def measure(rows: int, threads: int = 0) -> tuple[Clock, str]:
    """The steps of one size, and who was selected."""
    clock = Clock(rows)
    data = clock("rows drawn", lambda: experiment(rows))
    settings = Settings(
        seed=SEED, threads=threads, min_child_samples=max(20, rows // LEAVES_OF_ROWS), **TREES
    )
    fold = draw_folds(data.cluster, data.arm, FOLDS, np.random.default_rng(SEED))

    def shared() -> Problem:
        binned = Binned(data.X, data.schema.categorical, settings.threads)
        return prepare(data, binned, data.y, fold, settings, SEED)

    problem = clock("bins, arm means, scores", shared)
    fitted: dict[str, Fitted] = {}
    for name in OURS:
        fitted[name] = clock(name, lambda name=name: make_learner(name, fitted).fit(problem))  # type: ignore[misc]
    for name in OURS:
        clock(
            f"evaluation of {name}",
            lambda name=name: judge(problem, fitted[name].oof, top(fitted[name].oof, SHARE)),  # type: ignore[misc]
        )
    return clock, clock("selection", lambda: selected(problem, fitted, SHARE))


def run(options: Options) -> str:
    """The suite's table: the steps, and what the largest size says of a million rows."""
    sizes = (options.rows,) if options.rows else ((FULL_ROWS,) if options.full else ROWS)
    measured = [measure(rows) for rows in sizes]
    clocks = [clock for clock, _ in measured]
    table: list[list[str] | None] = []
    for step in clocks[0].steps:
        cells = [f"{cell}" for clock in clocks for cell in _cells(clock.steps[step])]
        table.append([step, *cells])
    table += [None, ["all", *(cell for clock in clocks for cell in _cells(clock.total()))]]
    wall, _, peak = clocks[-1].total()
    notes = [f"Selected: {', '.join(name for _, name in measured)}. Memory: the peak in a step."]
    if len(clocks) > 1:
        (_, first, less), (_, last, more) = clocks[0].total(), clocks[-1].total()
        steps = sizes[-1] - sizes[0]
        slope = (last - first) / steps
        cost = last + slope * (FULL_ROWS - sizes[-1])
        memory = more + (more - less) / steps * (FULL_ROWS - sizes[-1])
        notes += [
            f"CPU seconds per 100,000 further rows {slope * 1e5:.0f}; of the first "
            f"{sizes[0]:,} {first / sizes[0] * 1e5:.0f}.",
            f"Straight on to {FULL_ROWS:,} rows: {cost:.0f} CPU s, {memory / 1e9:.1f} GB.",
        ]
    elif sizes == (FULL_ROWS,):
        holds = "holds" if wall <= SECONDS and peak <= BYTES else "is missed"
        notes.append(f"Aim of 20 minutes and 12 GB for {FULL_ROWS:,} rows: {holds}.")
    return text_table(
        f"Scale: {FEATURES} features, {ARMS} arms and control, {FOLDS} folds",
        ("step", *(head for rows in sizes for head in (f"{rows:,}: s", "CPU s", "GB"))),
        table,
        notes,
    )


def _cells(step: tuple[float, float, int]) -> list[str]:
    wall, cpu, peak = step
    return [f"{wall:.1f}", f"{cpu:.1f}", f"{peak / 1e9:.2f}"]
