"""A service around the small shop, with a decision log of its own, and a client in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from serving.app import create_app
from serving.gate import Holder
from serving.log.engine import open_log
from serving.log.migrate import upgrade
from serving.scorer import Scorer
from serving.service import Service
from serving.startup import register_configured

JSON = {"content-type": "application/json"}


class Client:
    """Calls an application in this process, as a client over the network would."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.holder: Any = None
        self.folder: Any = None
        self.url = ""
        self.service: Any = None
        self.scorer: Any = None

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(call())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


def make_service(scorer: Scorer, url: str) -> Service:
    """A service on a new log at `url`, which knows the campaign of the configuration."""
    log = open_log(url)
    upgrade(log)
    service = Service(log, scorer.salt)
    service.start()
    register_configured(service, scorer)
    return service


@contextmanager
def serving(scorer: Scorer, place: Path | str) -> Iterator[Client]:
    """A client of an application around a scorer, with a log below a folder or at a URL."""
    url = place if isinstance(place, str) else f"sqlite:///{place / 'log.db'}"
    service = make_service(scorer, url)
    holder = Holder(scorer, service)
    client = Client(create_app(holder))
    client.holder = holder
    client.service = service
    client.scorer = scorer
    try:
        yield client
    finally:
        service.close()


def asked(*ids: str, campaign: str = "spring", **more: Any) -> dict[str, Any]:
    return {"campaign_id": campaign, "customers": [{"customer_id": i} for i in ids], **more}


def post(client: Client, body: Any, path: str = "/v1/decisions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={**JSON, **headers})
