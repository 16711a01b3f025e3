"""`python -m features check`: everything that is wrong or noteworthy in a user's data, at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from features.checks.exposures import check_exposures
from features.checks.lines import check_lines
from features.checks.others import (
    check_audiences,
    check_customers,
    check_events,
    check_features,
    check_moments,
)
from features.config import Config
from features.errors import InputError
from features.problems import Level, Problem, Problems, fail
from features.quarantine import quarantine_path
from features.sources import open_source
from features.tables import Tables

CHECKS: tuple[Callable[[Tables, Config, Problems], None], ...] = (
    check_features,
    check_lines,
    check_moments,
    check_audiences,
    check_events,
    check_customers,
    check_exposures,
)
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def run(config: Config) -> int:
    """Print every problem of the configured source; 2 if one of them is an error, else 0."""
    problems, counts = inspect(config)
    print(f"{config.name}: source {config.source.kind} {config.source.path or ''}".rstrip())
    for table, found in counts.items():
        print(f"  {table}: {found['read']} rows read, {found['kept']} kept")
        if found["read"] - found["kept"] - found.get("duplicate_dropped", 0):
            print(f"    the others are in {quarantine_path(config, table)}")
    for problem in problems:
        print(f"{problem.level:8}{problem.where}: {problem.text}")
    totals = {level: sum(p.level == level for p in problems) for level in LEVELS}
    print(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in totals.items()))
    return 2 if totals["error"] else 0


def check(config: Config) -> list[Problem]:
    """Every problem of the configured source, errors first, with counts and examples."""
    return inspect(config)[0]


def inspect(config: Config) -> tuple[list[Problem], Mapping[str, Mapping[str, int]]]:
    """The problems, errors first, and per table how many rows were read and kept."""
    found = Problems()
    counts: Mapping[str, Mapping[str, int]] = {}
    log = logging.getLogger("features.sources")
    handler = _Collector(found)
    log.addHandler(handler)
    try:
        tables = open_source(config).tables(found)
        counts = tables.counts
        for note in tables.notes:
            found.add("note", "source", note)
        found.found += findings(tables, config)
    except InputError as error:
        fail(found, error)
    finally:
        log.removeHandler(handler)
    return _sorted(found), counts


def findings(tables: Tables, config: Config) -> list[Problem]:
    """What is wrong or noteworthy in checked tables, errors first."""
    found = Problems()
    for part in CHECKS:
        try:
            part(tables, config, found)
        except InputError as error:
            fail(found, error)
    return _sorted(found)


def _sorted(found: Problems) -> list[Problem]:
    return sorted(found.found, key=lambda problem: LEVELS.index(problem.level))


class _Collector(logging.Handler):
    """Turns what the sources warn of in the log into notes."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(logging.WARNING)
        self.problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        where, _, text = record.getMessage().partition(": ")
        self.problems.add("note", where, text)
