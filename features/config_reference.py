"""`configs/reference.md`, made from the descriptions of the configuration's fields.

`python -m features.config_reference` writes it; a test holds the two together.
"""

from __future__ import annotations

import json
import types
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from features.config import Config

PATH = Path("configs/reference.md")
HEAD = """# Configuration reference

One YAML file describes one use; `--set key=value` overrides any key in every command. An unknown
key is an error. This file is made by `python -m features.config_reference`.
"""
WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    date: "date",
    bool: "true or false",
    datetime: "UTC time",
    type(None): "null",
    Any: "value",
}
MANY: dict[Any, str] = {list: "[]", dict: ".<name>"}


def reference() -> str:
    """The reference as Markdown: a table per section, a row per key, in the order of the model."""
    return "\n".join([HEAD, *_section("", Config)]) + "\n"


def main() -> None:
    """Write the reference into the working directory."""
    PATH.write_text(reference(), encoding="utf-8")


def _section(prefix: str, model: type[BaseModel]) -> list[str]:
    lines = [
        f"## {prefix or 'Top level'}",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _model(field.annotation)
        key = f"{prefix}.{name}" if prefix else name
        if inner is not None:
            below.append((key + MANY.get(get_origin(field.annotation), ""), inner))
            if field.annotation is inner:
                continue
        cells = (f"`{name}`", _limited(field), _default(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")
    for key, inner in below:
        lines += _section(key, inner)
    return lines


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _model(part)
        if found is not None:
            return found
    return None


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is list:
        inner = _model(parts[0])
        return f"list of {'sections' if inner else _type(parts[0])}"
    if origin is dict:
        return f"map of text to {'sections' if _model(parts[1]) else _type(parts[1])}"
    if origin is tuple:
        return "pair of " + " and ".join(_type(part) for part in parts)
    if _model(annotation):
        return "section"
    return WORDS.get(annotation, str(annotation))


def _limited(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    text = _type(field.annotation)
    return f"{text}, {', '.join(limits)}" if limits else text


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    main()
