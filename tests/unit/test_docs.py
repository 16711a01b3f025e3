"""Links and names in the hand-written documents lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "glossary.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOTTED = re.compile(r"`((?:features|uplift|training|serving|benchmarks)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:features|uplift|training|serving|benchmarks|configs|docs)/[\w/.-]+\.\w+)`")


def resolves(dotted: str) -> bool:
    """True for a module, or what is defined in one: a function, class, constant, method, field.

    The files are parsed, not imported: imports of all packages take many seconds.
    """
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
                return defined(body, parts[cut:])
    return False


def defined(body: list[ast.stmt], names: list[str]) -> bool:
    if not names:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == names[0]:
            return defined(node.body, names[1:])
        found: list[str] = []
        if isinstance(node, ast.FunctionDef):
            found = [node.name]
        elif isinstance(node, ast.AnnAssign):
            found = [ast.unparse(node.target)]
        elif isinstance(node, ast.Assign):
            found = [ast.unparse(target) for target in node.targets]
        if names[0] in found:
            return len(names) == 1
    return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    links = [
        target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target
    ]
    assert [target for target in links if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_modules_and_functions_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [name for name in DOTTED.findall(text) if not resolves(name)] == []
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []


def test_a_name_that_does_not_exist_is_found_out() -> None:
    assert resolves("uplift.scores.ScoreMatrix.gain")
    assert not resolves("uplift.scores.ScoreMatrix.profit")
    assert not resolves("uplift.nowhere.at_all")


def test_every_decision_is_listed_and_numbered_once() -> None:
    folder = ROOT / "docs" / "adr"
    files = sorted(p.name for p in folder.glob("0*.md"))
    assert [name[:4] for name in files] == [f"{i:04d}" for i in range(1, len(files) + 1)]
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == files
    for name in files:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {name[:4]} ")
        assert "**Context.**" in text
        assert "**Decision.**" in text
        assert "**Consequences.**" in text
