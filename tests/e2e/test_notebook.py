"""The notebooks as they are committed; `make notebooks` executes them."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OURS = ("features", "uplift", "training", "serving", "benchmarks")
MACHINE = re.compile(r"/(?:home|root|tmp|Users|work|opt|mnt)/|[A-Z]:\\\\")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return "\n".join(line for line in text.splitlines() if not line.startswith("%"))


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything of this project that the notebook imports."""
    return [
        (node.module, alias.name)
        for cell in cells(path, "code")
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    ]


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01_who_is_changed.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_outputs(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_names_no_path_of_a_machine(path: Path) -> None:
    assert not MACHINE.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_is_python_that_compiles(path: Path) -> None:
    assert len(cells(path, "code")) > 5
    for cell in cells(path, "code"):
        compile(source(cell), f"{path.name} {cell['id']}", "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_it_imports_of_this_project_exists(path: Path) -> None:
    names = imported(path)
    assert ("training.train", "run") in names
    missing = [
        f"{module}.{name}"
        for module, name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_truth_is_read_by_the_benchmark_alone(path: Path) -> None:
    assert ("benchmarks.truth", "read_truth") in imported(path)
    for cell in cells(path, "code"):
        assert "truth/" not in source(cell)
        assert ".parquet" not in source(cell)
