"""What `make audit` says of pip-audit's report."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

verdict = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "audit.py"))["verdict"]
FINE = {"name": "numpy", "version": "2.4.0", "vulns": []}
BAD = {
    "name": "left", "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "PYSEC-2", "fix_versions": []}],
}  # fmt: skip
SKIPPED = {"name": "lost", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([FINE], 0, "1 packages audited, 0 vulnerabilities known"),
        ([FINE, SKIPPED], 0, "not audited: lost"),
        (
            [FINE, BAD],
            1,
            "left 1.0: PYSEC-1, mended in 1.1\nleft 1.0: PYSEC-2, mended in no version",
        ),
        ([SKIPPED, SKIPPED], 0, "NOT AUDITED: no advisory service knows any of 2 packages"),
        ([], 0, "NOT AUDITED"),
    ],
)
def test_a_report_is_read(packages: list[Any], code: int, said: str) -> None:
    found, text = verdict(json.dumps({"dependencies": packages, "fixes": []}))
    assert found == code
    assert said in text
    assert ("NOT AUDITED" in text) == ("NOT AUDITED" in said)


@pytest.mark.parametrize("report", ["", "[]", "{}", "null", "ERROR"])
def test_no_report_is_no_clean_bill(report: str) -> None:
    code, text = verdict(report, "warning\nConnectionError: no route to host")
    assert (code, text) == (
        0,
        "NOT AUDITED: pip-audit gave no report (ConnectionError: no route to host)",
    )
