"""Named audiences: those of the configuration, and files that `audience --save` wrote.

A file is `data/audiences/<config.name>/<name>.yaml` with name, version, description and filter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from features.audience_language import canonical, parse
from features.config import ID_PATTERN, AudienceConfig, Config, Id, read_yaml
from features.errors import ConfigError
from features.outputs import write_aside

FOLDER = Path("data/audiences")


class SavedAudience(AudienceConfig):
    """What a file of a saved audience holds."""

    name: Id


@dataclass(frozen=True)
class Named:
    """An audience by its name, and the place of its filter for messages."""

    name: str
    version: int
    description: str
    filter: dict[str, Any]
    where: str


def saved_path(config: Config, name: str) -> Path:
    """The file of a saved audience, relative to the working directory."""
    return FOLDER / config.name / f"{name}.yaml"


def audience_names(config: Config) -> list[str]:
    """Names of the configuration, then of the saved files, each sorted."""
    folder = FOLDER / config.name
    saved = sorted(p.stem for p in folder.glob("*.yaml") if re.fullmatch(ID_PATTERN, p.stem))
    return [*sorted(config.audiences), *saved]


def find_audience(config: Config, name: str, where: str = "--name") -> Named:
    """The audience of a name, its filter not yet parsed.

    Raises:
        ConfigError: no such audience, one in the configuration and in a file, or a bad file.
    """
    known = audience_names(config)
    if name not in known:
        raise ConfigError(
            where,
            expected=f"one of the audiences {', '.join(known)}" if known else "a known audience",
            found=repr(name),
            remedy="Add it to audiences, or save it with `python -m features audience --save`.",
        )
    path = saved_path(config, name)
    own = config.audiences.get(name)
    if own is None:
        saved = read_saved(path)
        return Named(name, saved.version, saved.description, saved.filter, f"{path}: filter")
    if name in known[len(config.audiences) :]:
        raise ConfigError(
            f"audiences.{name}",
            expected="one audience of this name",
            found=f"another in {path}",
            remedy="Rename it, or remove the file.",
        )
    return Named(name, own.version, own.description, own.filter, f"audiences.{name}.filter")


def read_saved(path: Path) -> SavedAudience:
    """Read a file of a saved audience.

    Raises:
        ConfigError: the file is no saved audience, or of another name than its own.
    """
    try:
        saved = SavedAudience.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path}: {'.'.join(str(p) for p in first['loc'])}",
            expected="name, version, description and filter",
            found=first["msg"],
            remedy="Save the audience again; see docs/audiences.md.",
        ) from None
    if saved.name != path.stem:
        raise ConfigError(
            f"{path}: name",
            expected=f"{path.stem}, as the file is called",
            found=repr(saved.name),
            remedy="Rename the file or mend the name.",
        )
    return saved


def check_save(config: Config, name: str, filter_: dict[str, Any]) -> None:
    """Raise ConfigError if this filter cannot be saved under this name."""
    if not re.fullmatch(ID_PATTERN, name):
        raise ConfigError(
            "--save",
            expected=f"a name that matches {ID_PATTERN}",
            found=repr(name),
            remedy="Use letters, digits and . _ : -",
        )
    if name in config.audiences:
        raise ConfigError(
            "--save",
            expected="a name that the configuration does not have",
            found=repr(name),
            remedy="Take another name, or change audiences in the configuration.",
        )

    def find(wanted: str, where: str) -> tuple[Any, str]:
        """As it will be once the filter is saved: a reference to itself is a cycle."""
        if wanted == name:
            return filter_, "filter"
        named = find_audience(config, wanted, where)
        return named.filter, named.where

    parse({"audience": name}, config, find, where="--save")


def save_audience(
    config: Config, name: str, filter_: dict[str, Any], description: str = ""
) -> SavedAudience:
    """Save a filter under a name; the version counts up when the filter changed.

    An empty description keeps the one that was saved.

    Raises:
        ConfigError: a bad name or filter, a name of the configuration, or a folder that cannot be
            written.
    """
    check_save(config, name, filter_)
    path = saved_path(config, name)
    version = 1
    if path.is_file():
        before = read_saved(path)
        same = canonical(before.filter) == canonical(filter_)
        version = before.version if same else before.version + 1
        description = description or before.description
    saved = SavedAudience(name=name, version=version, description=description, filter=filter_)
    text = yaml.safe_dump(
        {key: getattr(saved, key) for key in ("name", "version", "description", "filter")},
        sort_keys=False,
        allow_unicode=True,
    )
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"), "--save")
    return saved
