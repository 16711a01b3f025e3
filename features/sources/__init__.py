"""Sources of tables: one file per kind, found by being in this package."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from features.config import Config
from features.errors import ConfigError
from features.sources.base import SOURCES, Source, source

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["SOURCES", "Source", "open_source", "source"]


def open_source(config: Config) -> Source:
    """The source that the configuration names; reads nothing yet.

    Raises ConfigError if nobody registered `source.kind`.
    """
    kind = config.source.kind
    if kind not in SOURCES:
        raise ConfigError(
            "source.kind",
            expected=" or ".join(sorted(SOURCES)),
            found=kind,
            remedy="Name one of these sources.",
        )
    return SOURCES[kind](config)
