"""Clients that load a server: as fast as it answers, or at a constant rate; and its memory."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS = 64
HEADERS = "Content-Type: application/json\r\n"
Bodies = Callable[[int], bytes]


@dataclass(frozen=True)
class Rate:
    """Of a closed loop: successes a second, failures, and latencies in milliseconds."""

    each_second: float
    failed: int
    p50: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Of requests at a constant rate: milliseconds from when each was due."""

    sent: int
    failed: int
    p50: float
    p99: float
    most: float


def drive(
    url: str,
    body: Bodies,
    seconds: float,
    connections: int = CONNECTIONS,
    rate: float | None = None,
) -> tuple[list[float], int]:
    """(milliseconds of each success, failures) of requests with `body(0)`, `body(1)`, ...; one
    after the other on each connection, or `rate` a second, counted from when each is due."""
    return asyncio.run(_drive(url, body, seconds, connections, rate))


async def _drive(
    url: str, body: Bodies, seconds: float, connections: int, rate: float | None
) -> tuple[list[float], int]:
    found = re.fullmatch(r"http://([\w.]+):(\d+)(/.*)", url)
    assert found is not None
    host, port, path = found[1], int(found[2]), found[3]
    begin = time.perf_counter() + 0.05
    took: list[float] = []
    number = failed = 0

    async def one() -> None:
        nonlocal number, failed
        reader, writer = await asyncio.open_connection(host, port)
        while True:
            n, number = number, number + 1
            due = begin + (n / rate if rate else 0.0)
            if rate is None and time.perf_counter() > begin + seconds:
                break
            if rate is not None and due > begin + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            started = due if rate else time.perf_counter()
            content = body(n)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{HEADERS}Content-Length: {len(content)}"
            writer.write(f"{head}\r\n\r\n".encode() + content)
            try:
                answer = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
                await reader.readexactly(int(size[1]) if size else 0)
                good = answer.startswith(b"HTTP/1.1 200")
            except (OSError, asyncio.IncompleteReadError):
                good = False
                reader, writer = await asyncio.open_connection(host, port)
            if good:
                took.append(1000 * (time.perf_counter() - started))
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return took, failed


def in_turn(url: str, bodies: Sequence[bytes]) -> list[float]:
    """Milliseconds of each of these requests, one after the other on one connection.

    Raises RuntimeError for an answer that is not a success.
    """
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=60)
    took = []
    with closing(connection):
        for body in bodies:
            started = time.perf_counter()
            connection.request("POST", where.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            took.append(1000 * (time.perf_counter() - started))
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {content[:200]!r}")
    return took


def closed(url: str, seconds: float, template: str, customers: int, first: int = 0) -> Rate:
    """The rate of CONNECTIONS that ask one after the other; `{n}` of the template counts up from
    `first` through the customers."""
    wrk = shutil.which("wrk")
    if wrk is None:
        took, failed = drive(url, counted(template, customers, first), seconds)
        p50, p99 = np.percentile(took, [50, 99]) if took else (np.nan, np.nan)
        return Rate(len(took) / seconds, failed, float(p50), float(p99))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA.replace("FIRST", str(first)).replace("CUSTOMERS", str(customers)))
        script.write(f"wrk.body = nil\nlocal template = [=[{template}]=]\n{_REQUEST}")
        script.flush()
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"]
        command += ["--timeout", "30s", "-s", script.name, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return read_wrk(done.stdout)


_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local n = FIRST - 1
local customers = CUSTOMERS
"""
_REQUEST = """
function request()
  n = n + 1
  local body = template:gsub("{n}", string.format("%08d", n % customers))
  return wrk.format(nil, nil, nil, body)
end
"""


def counted(template: str, customers: int, first: int = 0) -> Bodies:
    """Bodies of a template whose `{n}` counts up from `first` through the customers."""
    return lambda n: template.replace("{n}", f"{(first + n) % customers:08d}").encode()


def read_wrk(text: str) -> Rate:
    """What `wrk --latency` printed."""
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}

    def latency(share: str) -> float:
        found = re.search(rf"^\s+{share}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
        return float(found[1]) * unit[found[2]] if found else float("nan")

    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    failed = (int(refused[1]) if refused else 0) + sum(map(int, errors.groups() if errors else ()))
    return Rate(float(rate[1]) if rate else 0.0, failed, latency("50"), latency("99"))


def steady(url: str, body: Bodies, seconds: float, rate: float) -> Latency:
    """Latencies at a constant rate."""
    took, failed = drive(url, body, seconds, rate=rate)
    p50, p99 = np.percentile(took, [50, 99]) if took else (np.nan, np.nan)
    return Latency(len(took) + failed, failed, float(p50), float(p99), max(took, default=np.nan))


def memory(pid: int) -> float:
    """Megabytes of a process and its children, shared pages by their share (PSS)."""
    total = 0
    for one in [pid, *_children(pid)]:
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    own = [int(each) for each in text.split()]
    return own + [deeper for each in own for deeper in _children(each)]
