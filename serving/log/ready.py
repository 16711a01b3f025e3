"""Open the decision log of a configuration: of a server, and of commands that need no model."""

from __future__ import annotations

from pathlib import Path

from features.config import Config
from features.errors import ConfigError
from serving.log.engine import Log, LogUnavailable, explained, log_url, open_log
from serving.log.migrate import ensure_ready


def open_ready(config: Config, root: Path = Path("data")) -> Log:
    """The log of a configuration, with the schema of this release.

    Raises ConfigError where there is none, or no answer.
    """
    url, given = log_url(config.name, root)
    log = open_log(url)
    try:
        ensure_ready(log, may_create=not given)
    except LogUnavailable as error:
        raise silent(error, log.place) from None
    return log


def silent(error: LogUnavailable, place: str = "the database") -> ConfigError:
    """What a user is told of a log that does not answer."""
    return ConfigError(
        "the decision log",
        expected="a database that answers",
        found=explained(error),
        remedy=f"Look at {place}.",
    )
