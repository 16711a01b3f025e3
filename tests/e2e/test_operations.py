"""The runbook's first page, block after block, as a new user would: a model, PostgreSQL, four
workers, an answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_spine import OVERRIDES, ROOT, STORES
from tests.unit.serving.log.conftest import new_database, postgres_server

__all__ = ["postgres_server"]
DOCUMENT = ROOT / "docs" / "operations.md"


def blocks() -> list[str]:
    """The shell blocks of the section."""
    section = DOCUMENT.read_text().partition("## PostgreSQL and four workers")[2]
    return re.findall(r"```bash\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def documents(text: str) -> list[Any]:
    """JSON documents that stand one after the other."""
    found = []
    while text.strip():
        one, end = json.JSONDecoder().raw_decode(text.lstrip())
        found.append(one)
        text = text.lstrip()[end:]
    return found


@pytest.mark.slow
def test_the_runbook_brings_up_postgres_and_four_workers(
    tmp_path: Path, postgres_server: str
) -> None:
    """On a port that is free, with a small shop, and without waiting for the drain of the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    sets = " ".join(f"--set '{text}'" for text in OVERRIDES)
    script = changed(
        "\n".join(blocks()[:-1]),
        {
            "make setup\n": "",
            "make train CONFIG=$C": ".venv/bin/python -m training train --config $C",
            # The trial's own server would outlive this test where it fails.
            re.findall(r'export PERSUADABLES_LOG_URL="\$\(.*\)"', "\n".join(blocks()))[0]: "",
            "postgresql://scorer:password@db.internal/persuadables": new_database(postgres_server),
            "configs/demo.yaml": "configs/demo-small.yaml",
            '"campaign_id": "demo"': '"campaign_id": "demo-small"',
            "--config $C": f"--config $C {sets}",
            "8000": str(port),
            "--workers 4": "--workers 4 --drain-seconds 0",
        },
    )
    environment = {k: v for k, v in os.environ.items() if k not in STORES}
    done = subprocess.run(
        ["bash", "-c", f"trap 'kill $(jobs -p); wait' EXIT\nset -eo pipefail\n{script}"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    log = tmp_path / "data" / "api.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    ready, decided, model = documents(done.stdout[done.stdout.index('{"status"') :])
    assert ready["status"] == "ready"
    known, unknown = decided["decisions"]
    assert (known["profile_state"], unknown["reason"]) == ("known", "unknown_customer")
    assert known["decision_id"].startswith("d-")
    assert model["snapshot"]["customers"] == 2000
    assert log.read_text().count("4 worker(s)") == 1
    assert (tmp_path / "data" / "salt").stat().st_mode & 0o077 == 0
