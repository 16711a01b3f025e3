"""Clients that load a server: as fast as it answers, or at a constant rate; and its memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS = 64
ANSWER_SECONDS = 60.0
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
    lead: float = 0.0,
) -> tuple[list[float], int]:
    """(milliseconds of each success, failures) of requests with `body(0)`, `body(1)`, ...; one
    after the other on each connection, or `rate` a second, counted from when each is due. What is
    due in the first `lead` of so many seconds more is not timed.

    At a rate, each request takes the connection that has been free for longest; where none is
    free, it waits for one, and its time runs. Nothing but this loop: a client of many layers takes
    the cores from the server beside it, and measures its own queue.
    """
    where = urlsplit(url)
    address = (where.hostname or "", where.port or 80)
    head = f"POST {where.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    def request(number: int) -> bytes:
        content = body(number)
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    # What can be made before it is due is made before, and nothing is looked up that is known.
    ready = [request(number) for number in range(round(rate * (lead + seconds)) + 1 if rate else 0)]
    free = deque(socket.create_connection(address) for _ in range(connections))
    known = {connection.fileno(): connection for connection in free}
    poll = select.epoll()
    for number in known:
        poll.register(number, select.EPOLLIN)
    asked: dict[socket.socket, tuple[float, bytearray]] = {}
    took: list[float] = []
    sent, failed = 0, 0
    gc.disable()  # Of the models in this process: to look through them takes longer than an answer.
    begin = time.perf_counter() + 0.05
    try:
        while True:
            now = time.perf_counter()
            due = begin + sent / rate if rate else max(now, begin)
            over = due > begin + lead + seconds
            if free and due <= now and not over:
                connection = free.popleft()
                asked[connection] = (due, bytearray())
                with suppress(OSError):  # its answer will be missing
                    connection.sendall(ready[sent] if sent < len(ready) else request(sent))
                sent += 1
                continue
            if over and not asked:
                return took, failed
            pause = due - now if free and not over else ANSWER_SECONDS
            # epoll itself waits for whole milliseconds; what is due must not wait for one.
            if not select.select([poll], [], [], pause)[0]:
                if pause == ANSWER_SECONDS:
                    return took, failed + len(asked)
                continue
            for number, _ in poll.poll(0):
                connection = known[number]
                if connection not in asked:  # ended by the server while it was free
                    status: bytes | None = b""
                    free.remove(connection)
                else:
                    due, answer = asked[connection]
                    status = _received(connection, answer)
                    if status is None:
                        continue
                    del asked[connection]
                    if status == b"200":
                        if due >= begin + lead:
                            took.append(1000 * (time.perf_counter() - due))
                    else:
                        failed += 1
                if not status:
                    poll.unregister(number)
                    del known[number]
                    connection.close()
                    connection = socket.create_connection(address)
                    known[connection.fileno()] = connection
                    poll.register(connection.fileno(), select.EPOLLIN)
                free.append(connection)
    finally:
        gc.enable()
        poll.close()
        for connection in (*free, *asked):
            connection.close()


def _received(connection: socket.socket, answer: bytearray) -> bytes | None:
    """Add what has come to an answer: its status once it is whole, empty for a lost connection."""
    try:
        more = connection.recv(1 << 18)
    except OSError:
        return b""
    if not more:
        return b""
    answer += more
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    size = _SIZE.search(answer, 0, end + 2)
    whole = end + 4 + (int(size[1]) if size else 0)
    return bytes(answer[9:12]) if len(answer) >= whole else None


_SIZE = re.compile(rb"content-length: (\d+)\r", re.IGNORECASE)


def in_turn(url: str, bodies: Sequence[bytes]) -> list[float]:
    """Milliseconds of each of these requests, one after the other on one connection.

    Raises RuntimeError for an answer that is not a success.
    """
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=60)
    took = []
    with closing(connection), on(shared_out()[1]):
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
        with on(shared_out()[1]):
            took, failed = drive(url, counted(template, customers, first), seconds)
        p50, p99 = np.percentile(took, [50, 99]) if took else (np.nan, np.nan)
        return Rate(len(took) / seconds, failed, float(p50), float(p99))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA.replace("FIRST", str(first)).replace("CUSTOMERS", str(customers)))
        script.write(f"wrk.body = nil\nlocal template = [=[{template}]=]\n{_REQUEST}")
        script.flush()
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"]
        command += ["--timeout", "30s", "-s", script.name, url]
        with on(shared_out()[1]):
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


def steady(url: str, body: Bodies, seconds: float, rate: float, lead: float = 0.0) -> Latency:
    """Latencies at a constant rate, after a lead of so many seconds at the same rate; of one client
    for each core that is the clients'."""
    cores = shared_out()[1][:CONNECTIONS]
    context = multiprocessing.get_context("fork")

    def ask(number: int, answer: Connection) -> None:
        os.sched_setaffinity(0, {cores[number]})
        with in_front():
            mine = CONNECTIONS // len(cores)
            each = partial(drive, connections=mine, rate=rate / len(cores), lead=lead)
            answer.send(each(url, lambda n: body(number + n * len(cores)), seconds))

    took: list[float] = []
    failed = 0
    with ExitStack() as stack:
        pipes = [context.Pipe(duplex=False) for _ in cores]
        for number, (read, write) in enumerate(pipes):
            process = context.Process(target=ask, args=(number, write), daemon=True)
            process.start()
            write.close()  # then the loss of the client is seen
            stack.callback(process.join)
            stack.callback(read.close)
        for read, _ in pipes:
            its, lost = read.recv()
            took += its
            failed += lost
    p50, p99 = np.percentile(took, [50, 99]) if took else (np.nan, np.nan)
    return Latency(len(took) + failed, failed, float(p50), float(p99), max(took, default=np.nan))


def shared_out() -> tuple[list[int], list[int]]:
    """(cores of the servers, cores of the clients): a quarter of those that this process may use is
    the clients', one at least; a single core is both's. What a client takes from a server's core,
    and the time that it waits for it, would count as the server's."""
    cores = sorted(os.sched_getaffinity(0))
    clients = max(1, len(cores) // 4)
    return cores[:-clients] or cores, cores[-clients:]


@contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """While it lasts, this thread, and what it starts, runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def in_front() -> Iterator[bool]:
    """While it lasts, this process runs as soon as it can, before all others of the machine, where
    the system lets it; whether it does. What waits in the client would count as the server's."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        first = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, first, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (AttributeError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


def memory(pid: int) -> float:
    """Megabytes of a process and its children, shared pages by their share (PSS)."""
    return _megabytes(pid, "Pss")


def own_memory(pid: int) -> float:
    """The same without pages of files. Those of the snapshot come in as customers are asked for,
    and shares of libraries change as other processes begin and end."""
    return _megabytes(pid, "Pss_Anon")


def _megabytes(pid: int, kind: str) -> float:
    total = 0
    for one in [pid, *_children(pid)]:
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    own = [int(each) for each in text.split()]
    return own + [deeper for each in own for deeper in _children(each)]
