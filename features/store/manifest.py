"""What a store holds: which file gave which days, which data files a day has, which settings.

The manifest is written last and renamed into place: until then the former state is the valid one,
and data files never change once they bear their name, which holds the digest of their bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from features.config import Config
from features.errors import ConfigError, DataError
from features.orders import STATE
from features.outputs import write_aside

FOLDER = Path("data/store")
NAME = "manifest.json"
# Counts up when the columns of the data files or the rules behind them change.
SCHEMA = 3
KINDS = ("lines", "orders", "bad")


@dataclass(frozen=True)
class TakenFile:
    """A source file as it was taken in.

    `time` is its modification time in nanoseconds; `counts` has `read` and one number per reason
    for which rows were set aside; `days` are the local days of its good rows; `given` are the
    canonical columns that it was read with.
    """

    size: int
    time: int
    sha256: str
    counts: dict[str, int]
    days: tuple[str, ...]
    given: tuple[str, ...]


@dataclass(frozen=True)
class Day:
    """A local day: its data files, its span (naive UTC, inclusive), and its lines.

    `kept` lines count; `repeats` are identical lines that were dropped, `identical` such lines
    that were kept.
    """

    lines: str
    orders: str
    first: datetime
    last: datetime
    kept: int
    repeats: int
    identical: int


@dataclass(frozen=True)
class Manifest:
    """The state of a store.

    `settings` are the digests of `settings_digests`, `people` and `numbered` what else they were
    made from. `written` is the time of writing, nanoseconds. `files` are by path, `days` by
    ISO date; both in order. `bad` is the data file of all bad rows, "" if there are none.
    """

    settings: tuple[str, str]
    people: str
    numbered: bool
    written: int = 0
    files: dict[str, TakenFile] = field(default_factory=dict)
    days: dict[str, Day] = field(default_factory=dict)
    bad: str = ""

    @property
    def data_files(self) -> set[str]:
        """Paths of the data files, relative to the store."""
        of_days = {name for day in self.days.values() for name in (day.lines, day.orders)}
        return of_days | ({self.bad} - {""})


def store_folder(config: Config) -> Path:
    """Where the store of a configuration is, relative to the working directory."""
    return FOLDER / config.name


def settings_digests(config: Config, identities: str, *, numbered: bool) -> tuple[str, str]:
    """Digests of the settings behind the checked lines, and of those behind the sums of orders.

    `identities`: digest of that table. `numbered`: identical lines are repeats, because lines have
    ids or the configuration says so.
    """
    source, features = config.source, config.features
    cleaned = [
        SCHEMA,
        config.timezone,
        source.drop_duplicates,
        source.columns.get("transactions", {}),
        source.constants.get("transactions", {}),
        identities,
    ]
    offers = [(o.coupon_id, o.kind, o.params.get("threshold")) for o in config.offers]
    summed = [STATE, numbered, sorted(offers), features.online_channels, features.mobile_payments]
    first = _digest(cleaned)
    return first, _digest([first, summed])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest | None:
    """The state of a store; None where there is none, or one of another version.

    Raises:
        DataError: the manifest is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("schema") != SCHEMA:
            return None
        files = {
            name: TakenFile(
                **{**value, "days": tuple(value["days"]), "given": tuple(value["given"])}
            )
            for name, value in raw.pop("files").items()
        }
        days = {name: _day(value) for name, value in raw.pop("days").items()}
        settings = tuple(raw.pop("settings"))
        return Manifest(settings, **raw, files=files, days=days)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            str(path),
            expected="the manifest that an ingest wrote",
            found=f"another text ({type(error).__name__})",
            remedy=f"Remove the folder {folder}; the next ingest builds it again.",
        ) from error


def _day(value: Mapping[str, Any]) -> Day:
    times = {name: datetime.fromisoformat(value[name]) for name in ("first", "last")}
    return Day(**{**value, **times})


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Make this state the valid one.

    Raises:
        ConfigError: the folder cannot be written.
    """
    # Written at each ingest, so it must be quick where there are thousands of files and days.
    files = {name: vars(file) for name, file in manifest.files.items()}
    days = {name: vars(day) for name, day in manifest.days.items()}
    whole = {"schema": SCHEMA, **vars(manifest), "files": files, "days": days}
    text = json.dumps(whole, default=str)
    write_aside(folder / NAME, lambda aside: aside.write_text(text, encoding="utf-8"), str(folder))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time; a second one waits.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        for kind in KINDS:
            (folder / kind).mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            str(folder),
            expected="a folder that can be written",
            found=str(error.strerror or error),
            remedy="Start the command where data/store can be written.",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
