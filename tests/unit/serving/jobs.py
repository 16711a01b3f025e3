"""Audience jobs of the small shop: asked for over HTTP, done by a worker in this process."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

from serving.jobs import Worker
from tests.unit.serving.answering import Client, post

_keys = itertools.count()


def ask(client: Client, campaign: str = "spring", **more: Any) -> Any:
    """The answer to a request for a job."""
    key = {"idempotency-key": f"k-{next(_keys)}"}
    return post(client, {"campaign_id": campaign, **more}, "/v1/audiences", **key)


def queue(client: Client, campaign: str = "spring", **more: Any) -> str:
    """The id of a new job."""
    answer = ask(client, campaign, **more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def worker(client: Client, root: Path, **more: Any) -> Worker:
    """A worker of the client's log, whose results are below `root`."""
    client.holder.root = root
    return Worker(client.service.log, client.scorer, root, **more)


def state(client: Client, job_id: str) -> dict[str, Any]:
    """A job as it is answered."""
    answer = client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def download(client: Client, job_id: str, name: str, **headers: str) -> Any:
    return client.get(f"/v1/jobs/{job_id}/result/{name}", headers=headers)


def manifest(client: Client, job_id: str) -> dict[str, Any]:
    answer = download(client, job_id, "manifest.json")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def rows(client: Client, job_id: str) -> list[dict[str, Any]]:
    """All rows of the NDJSON files, in order."""
    found = []
    for file in manifest(client, job_id)["files"]:
        if file["format"] == "ndjson":
            content = gzip.decompress(download(client, job_id, file["name"]).content)
            found += [json.loads(line) for line in content.splitlines()]
    return found


def done(client: Client, root: Path, campaign: str = "spring", **more: Any) -> str:
    """The id of a job that has succeeded."""
    job_id = queue(client, campaign, **more)
    assert worker(client, root).run_one()
    found = state(client, job_id)
    assert found["state"] == "succeeded", found
    return job_id
