"""Links and names in the hand-written documents lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "glossary.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOTTED = re.compile(r"`((?:features|uplift|training|serving|benchmarks)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:features|uplift|training|serving|benchmarks|configs|docs)/[\w/.-]+\.\w+)`")


def resolves(dotted: str) -> bool:
    """True for a module, or a name (or a field of a class) in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            fields = {**getattr(found, "model_fields", {}), **getattr(found, "__annotations__", {})}
            if not hasattr(found, name) and name not in fields:
                return False
            found = getattr(found, name, None)
        return True
    return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    links = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    assert [target for target in links if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_modules_and_functions_exist(path: Path) -> None:
    text = path.read_text()
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
    listed = LINK.findall((folder / "README.md").read_text())
    assert sorted(listed) == files
    for name in files:
        text = (folder / name).read_text()
        assert text.startswith(f"# {name[:4]} ")
        assert "**Context.**" in text
        assert "**Decision.**" in text
        assert "**Consequences.**" in text
