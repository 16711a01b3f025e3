"""What is installed is what stands here."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    there = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in {name.split(".")[0] for name in listed}
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(there)
