"""Processes that work on one log at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def run_together(code: str, url: str, count: int) -> list[int]:
    """The number that each of `count` processes prints at its end. `code` gets the log's URL and
    the process's own number; it prints "ready" and waits for a line, so that all start together,
    however busy the machine is."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(number)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [int(process.communicate(timeout=120)[0]) for process in processes]
