"""`docs/features.md`, made from the catalogue.

`python -m features.reference` writes it; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from features.registry import CATALOGUE, GROUPS, Feature

PATH = Path("docs/features.md")
HEAD = """# Features

Each is computed per customer as of a moment, from rows strictly before it. `_Nd` means an age of
at most N local days; an order is valid unless it was fully returned before the moment; an order day
is a local date with a valid order. Shares are of valid orders in the window unless stated. *None*
is the value of a customer without history; a feature whose table is absent is NULL for everyone.
★ marks the default set (`features.set: core`); *population* marks features that look at other
customers, through frozen values only. This file is made by `python -m features.reference`.
"""


COLUMNS = "| name | definition | type | none | needs |\n|---|---|---|---|---|"


def reference() -> str:
    """The catalogue as Markdown: a table per group, a row per feature."""
    parts = [HEAD]
    for group, title in GROUPS.items():
        own = [f for f in CATALOGUE.values() if f.group == group]
        if own:
            rows = "\n".join(_row(f) for f in own)
            parts.append(f"## {title}\n\n{COLUMNS}\n{rows}\n")
    return "\n".join(parts)


def _row(f: Feature) -> str:
    doc = f.doc.replace("|", "\\|") + (" *population*" if f.population else "")
    none = "NULL" if f.none is None else str(f.none)
    star = " ★" if f.core else ""
    return f"| `{f.name}`{star} | {doc} | {f.dtype} | {none} | {', '.join(f.needs)} |"


if __name__ == "__main__":
    PATH.write_text(reference(), encoding="utf-8")
