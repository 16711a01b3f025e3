"""The examples of docs/api.md run as they stand, and leave no address out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.contracts.test_api import ROOT, document, shop
from tests.contracts.test_server import folder, running

__all__ = ["folder", "shop"]
PAGE = ROOT / "docs" / "api.md"


def examples() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [
        command for block in blocks for command in re.split(r"(?m)^(?=curl )", block) if command
    ]


def wait_for(client: httpx.Client, job: str) -> None:
    """Until a job is done, by the process that the server has started for it."""
    for _ in range(600):
        state = client.get(f"/v1/jobs/{job}").json()["state"]
        if state not in ("queued", "running", "committing"):
            break
        time.sleep(0.1)
    assert state == "succeeded"


def test_every_address_has_an_example() -> None:
    text = "\n".join(examples())
    for path in document()["paths"]:
        pattern = re.escape("$URL" + path)
        pattern = re.sub(r"\\{\w+\\}", r"[$\\w.-]+", pattern)
        assert re.search(pattern + r"(?![/\w])", text), path


def python_example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_every_example_is_answered(folder: Path) -> None:
    with running(folder) as client:
        address = str(client.base_url).rstrip("/")
        printed = subprocess.run(
            [sys.executable, "-c", python_example()],
            env={"URL": address, "KEY": "none", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert [line.split()[0] for line in printed[:3]] == ["c-020", "c-021", "c-022"]
        assert printed[-1].isdigit()
        answers, job = [], ""
        for command in examples():
            if "/result/" in command:
                wait_for(client, job)
            done = subprocess.run(
                ["bash", "-c", command.replace("curl -s", "curl -s -w '\\n%{http_code}'", 1)],
                env={"URL": address, "KEY": "none", "JOB": job, "PATH": "/usr/bin:/bin",
                     "NO_PROXY": "*"},
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            body, _, status = done.stdout.rpartition("\n")
            assert status in ("200", "201", "202", "206"), f"{command}\n{done.stdout}"
            answers.append(body)
            if "/v1/audiences" in command:
                job = json.loads(body)["job_id"]
    decided = json.loads(next(a for a in answers if "decisions" in a and "counts" in a))
    assert [d["customer_id"] for d in decided["decisions"]] == ["c-010", "c-011"]
