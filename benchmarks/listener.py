"""Servers for the benchmark of serving, in processes of their own: ours, and a bare route. Of both
each worker is bound to a core, as with `python -m serving api --bind`.

Usage: python -m benchmarks.listener --port P --workers W [--size BYTES]
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

NAME = "scoring"
PATH = "/v1/decisions"


def _bare(door: socket.socket, content: bytes, number: int) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from serving.door import SharingServer, bind
    from serving.loop import LOOP

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/json")

    async def ready(request: Request) -> Response:
        return Response(b"{}")

    app = Starlette(routes=[Route(PATH, answer, methods=["POST"]), Route("/readyz", ready)])
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        http="h11",
        loop=LOOP,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=4096,
    )
    bind(number)
    SharingServer(settings).run([door])


def _ours(door: socket.socket, workers: int, number: int) -> None:
    from features.config import load_config
    from serving.limits import Quota
    from serving.workers import Start, serve
    from serving.workers import prepare as prepared

    config = load_config(f"{NAME}.yaml", [])
    port = door.getsockname()[1]
    start = Start(
        f"{NAME}.yaml", (), "127.0.0.1", port, workers, 0.0, number=number, bound=True
    )  # fmt: skip
    holder = prepared(config, start)
    holder.open().quota = Quota(10**9, 10**9)
    serve(holder, start, door, lambda: None)


def listen(port: int, workers: int, size: int) -> int:
    """Serve until a signal: the bare route with answers of `size` bytes, or ours for size 0."""
    from serving.door import open_door

    context = multiprocessing.get_context("spawn")
    with open_door("127.0.0.1", port) as door:
        target: Callable[..., None] = _bare if size else _ours
        told: Any = b"x" * size if size else workers
        processes = [context.Process(target=target, args=(door, told, i)) for i in range(workers)]

        def stop(*_: object) -> None:
            for process in processes:
                process.terminate()

        signal.signal(signal.SIGTERM, stop)
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listener")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=0, help="of the bare route's answers; 0: ours")
    given = parser.parse_args()
    sys.exit(listen(given.port, given.workers, given.size))
