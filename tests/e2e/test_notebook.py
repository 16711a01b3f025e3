"""The notebooks as they are committed; `make notebooks` executes them."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STORY, EVALUATION = "01_who_is_changed.ipynb", "02_evaluate_on_hillstrom.ipynb"
HILLSTROM = ROOT / "../shared/data/hillstrom.parquet"
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


def executed(path: Path, folder: Path, **given: str) -> list[dict[str, Any]]:
    """The code cells with their outputs, run as `make notebooks` does, `given` in the
    environment."""
    plain = {k: v for k, v in os.environ.items() if k not in ("CONFIG", "HILLSTROM_FILE")}
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
    done = subprocess.run(
        [*command, "--output-dir", str(folder), str(path)],
        env={**plain, **given},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return cells(folder / path.name, "code")


def shown(ran: list[dict[str, Any]], kind: str) -> list[str]:
    """All outputs of a kind (a MIME type) of executed cells."""
    data = [output.get("data", {}) for cell in ran for output in cell["outputs"]]
    return ["".join(entry[kind]) for entry in data if kind in entry]


def test_the_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == [STORY, EVALUATION]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_a_valid_notebook(path: Path) -> None:
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    assert found["nbformat"] == 4
    assert len(found["cells"]) > 5


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


def misfits(path: Path) -> tuple[int, list[str]]:
    """Calls of this project's functions in a notebook, and those whose arguments do not fit."""
    known = {
        name: getattr(importlib.import_module(module), name) for module, name in imported(path)
    }
    checked, wrong = 0, []
    for cell in cells(path, "code"):
        for call in ast.walk(ast.parse(source(cell))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            function = known.get(call.func.id)
            spread = any(isinstance(arg, ast.Starred) for arg in call.args)
            named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            if function is None or spread or len(named) < len(call.keywords):
                continue
            checked += 1
            try:
                inspect.signature(function).bind(*call.args, **named)
            except TypeError as error:
                wrong.append(f"{cell['id']}: {call.func.id}: {error}")
    return checked, wrong


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_its_calls_of_this_project_fit_their_signatures(path: Path) -> None:
    checked, wrong = misfits(path)
    assert checked > 3
    assert wrong == []


def test_a_call_that_does_not_fit_is_seen(tmp_path: Path) -> None:
    text = NOTEBOOKS[1].read_text(encoding="utf-8")
    assert "predict(c.bundle, models)" in text
    changed = tmp_path / EVALUATION
    changed.write_text(text.replace("predict(c.bundle, models)", "predict(c.bundle, models, 1)"))
    _, wrong = misfits(changed)
    assert len(wrong) == 1
    assert "predict: too many positional arguments" in wrong[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_truth_is_read_by_the_benchmark_alone(path: Path) -> None:
    reads = ("benchmarks.truth", "read_truth") in imported(path)
    assert reads is (path.name == STORY)  # of a real experiment nobody knows it
    for cell in cells(path, "code"):
        assert "truth/" not in source(cell)
        assert ".parquet" not in source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_figure_says_what_it_is_of(path: Path) -> None:
    """Their titles come from the notebook's `title`, or name the data themselves."""
    found = [source(cell) for cell in cells(path, "code")]
    (helper,) = [text for text in found if "def title(" in text]
    assert "KIND" in helper or "SIMULATED" in helper
    plots = [text for text in found if "plt.show()" in text]
    assert len(plots) >= 5
    for plot in plots:
        own = "suptitle(" in plot and ("KIND" in plot or "SIMULATED" in plot)
        assert own or re.search(r"\btitle\(", plot)


@pytest.mark.slow
def test_the_story_runs(tmp_path: Path) -> None:
    ran = executed(ROOT / "notebooks" / STORY, tmp_path)
    assert len(shown(ran, "image/png")) == sum("plt.show()" in source(cell) for cell in ran)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_the_evaluation_runs(tmp_path: Path, kind: str) -> None:
    """The whole way with the file and without it; what is made up says so, everywhere."""
    if kind == "real" and not HILLSTROM.exists():
        pytest.skip("the file of the MineThatData challenge is not there")
    given = {"HILLSTROM_FILE": str(HILLSTROM.resolve())} if kind == "real" else {}
    ran = executed(ROOT / "notebooks" / EVALUATION, tmp_path, **given)
    assert len(shown(ran, "image/png")) == sum("plt.show()" in source(cell) for cell in ran)
    sentences, tables = shown(ran, "text/markdown"), shown(ran, "text/html")
    assert len(sentences) >= 8
    assert len(tables) >= 7
    for text in (*sentences, *tables):
        assert ("SIMULATED" in text) is (kind == "simulated")
