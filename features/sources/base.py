"""What a source is, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from features.config import Config
from features.problems import Problems
from features.tables import Tables


class Source(Protocol):
    """Reads one kind of source. Made from the configuration; nothing is read before `tables`."""

    def __init__(self, config: Config) -> None: ...

    def tables(self, problems: Problems | None = None) -> Tables:
        """The checked tables.

        With `problems`, what would stop a job is collected there instead of raised, so that
        `features check` shows everything at once. Raises DataError without it.
        """
        ...


SOURCES: dict[str, type[Source]] = {}


def source(kind: str) -> Callable[[type[Source]], type[Source]]:
    """Register a class as the source of `source.kind: <kind>`."""

    def register(cls: type[Source]) -> type[Source]:
        if kind in SOURCES:
            raise ValueError(f"two sources are called {kind}")
        SOURCES[kind] = cls
        return cls

    return register
