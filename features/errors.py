"""Errors that a user can mend. Every command turns them into one message and exit code 2.

InputError
├── ConfigError   a key of the configuration file (or of --set)
└── DataError     a table, a column, or rows of a source
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_KEYS = 5


class InputError(Exception):
    """Bad input or configuration: what was expected, what was found, and the remedy."""

    def __init__(
        self,
        where: str,
        *,
        expected: str,
        found: str,
        remedy: str,
        keys: Sequence[object] = (),
    ) -> None:
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy
        self.keys = [str(k) for k in keys[:MAX_KEYS]]
        shown = f" (for example {', '.join(self.keys)})" if self.keys else ""
        super().__init__(f"{where}: expected {expected}, found {found}{shown}. {remedy}")


class ConfigError(InputError):
    """A configuration key that is missing, unknown, or of the wrong value."""


class DataError(InputError):
    """A source, table, column or row that cannot be used."""
