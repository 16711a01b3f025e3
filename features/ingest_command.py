"""`python -m features ingest`: bring the incremental store up to date, and say how."""

from __future__ import annotations

from features.config import Config
from features.errors import ConfigError
from features.quarantine import quarantine_path
from features.sources.files import FilesSource
from features.store import Ingest

SHOWN = 5


def run(config: Config) -> int:
    """Take in new, changed and removed files of transactions; 0.

    Raises:
        ConfigError: the source is not a folder of files, or the store cannot be written.
        DataError: a file cannot be used; the store is what it was before.
    """
    if config.source.kind != "files":
        raise ConfigError(
            "source.kind",
            expected="files",
            found=config.source.kind,
            remedy="Only files are taken in; other sources are read where they are.",
        )
    taken = FilesSource(config).ingest()
    for line in told(config, taken):
        print(line)
    return 0


def told(config: Config, taken: Ingest) -> list[str]:
    """What an ingest came to, in lines of text."""
    lines = []
    if taken.again:
        lines.append(f"everything was done again: {taken.again}")
    for what, names in taken.files.items():
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            plural = "" if len(names) == 1 else "s"
            lines.append(f"{len(names)} {what} file{plural}: {', '.join(names[:SHOWN])}{more}")
    if taken.read:
        lines.append(f"{taken.read} rows read, {taken.read - sum(taken.bad.values())} good")
    if taken.bad:
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(taken.bad.items()))
        lines.append(f"set aside: {counts}; see {quarantine_path(config, 'transactions')}")
    days, state = taken.days, taken.store.manifest.days
    if days:
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(f"{len(days)} day{'' if len(days) == 1 else 's'} written: {span}")
    else:
        lines.append("nothing to take in")
    whole = taken.cleaned
    copies = f", {whole.dropped} identical lines dropped" if whole.dropped else ""
    lines.append(
        f"{config.name}: {whole.kept} lines of {len(state)} days in {taken.store.folder}{copies}"
    )
    return lines
