"""What the suites share: options, plain-text tables, the machine, peak memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 120
THREADS = 2


@dataclass(frozen=True)
class Options:
    """config: of the suites that train; overrides: key=value on it; full: the large sizes.

    Of learners, experiments and scale: `rows` and `repeats` (seeds, or random halves; 0: the
    suite's own), `worlds` (simulated worlds or experiments; none: all), `keep`: a folder where
    parts that are done are kept, so that a run can be taken up again; `data`: a folder with the
    real experiments. Of features, with `full`: `rows` is a further number of lines.
    """

    config: str = "configs/demo.yaml"
    overrides: list[str] = field(default_factory=list)
    full: bool = False
    rows: int = 0
    repeats: int = 0
    worlds: list[str] = field(default_factory=list)
    keep: str | None = None
    data: str | None = None


def text_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    notes: Sequence[str] = (),
) -> str:
    """A table in plain text: the first column to the left, the others to the right.

    A row that is None is an empty line. Raises ValueError for a line above 120 columns.
    """
    filled = [list(row) for row in rows if row is not None]
    widths = [max(len(cells[i]) for cells in [list(header), *filled]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        rest = [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  " + "  ".join([f"{cells[0]:<{widths[0]}}", *rest]).rstrip()

    out = [title, "", line(header), "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))]
    out += ["" if row is None else line(row) for row in rows]
    out += ["", *notes] if notes else []
    long = [text for text in out if len(text) > WIDTH]
    if long:
        raise ValueError(f"a line of more than {WIDTH} columns: {long[0]!r}")
    return "\n".join(out)


def progress(text: str) -> None:
    """One line on the error stream, which tables do not share."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def apart(suite: str, way: str, lines: int, label: str, *more: str) -> dict[str, Any]:
    """What `python -m benchmarks.<suite> --way W --lines N` measures, in a process of its own."""
    progress(f"{suite}: {label}")
    command = [sys.executable, "-m", f"benchmarks.{suite}", "--way", way, "--lines", str(lines)]
    command += more
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{way}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> str:
    """Cores, memory, Python, and how busy the machine was; figures are worth as much."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, "
        f"load at the start {os.getloadavg()[0]:.1f}"
    )


def peak_memory() -> int:
    """The most memory that this process had resident so far, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage of a child begins with what its parent had; this count begins with the program.
        for text in status.read_text().splitlines():
            if text.startswith("VmHWM:"):
                return int(text.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
