"""Problems of the data: raised one at a time in a job, collected all at once by a check."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from features.errors import InputError

LOG = logging.getLogger("features.sources")
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One finding: how grave, where, and what, with counts and examples in the text."""

    level: Level
    where: str
    text: str


@dataclass
class Problems:
    """Collects what would stop a job."""

    found: list[Problem] = field(default_factory=list)

    def add(self, level: Level, where: str, text: str) -> None:
        self.found.append(Problem(level, where, text))


def fail(problems: Problems | None, error: InputError) -> None:
    """Raise `error`, or note it when somebody collects."""
    if problems is None:
        raise error
    text = str(error).removeprefix(f"{error.where}: ")
    problems.add("error", error.where, text)


def warn(problems: Problems | None, where: str, text: str) -> None:
    """Log a warning, or note it when somebody collects."""
    if problems is None:
        LOG.warning("%s: %s", where, text)
    else:
        problems.add("warning", where, text)
