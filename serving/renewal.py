"""A running server takes up a new model or snapshot; `python -m serving sync` brings them.

The process that syncs talks to the registry and builds; servers only look at what is verified on
this disk. They replace the reference to the old pair by the new one, whole; a request that has read
the old one finishes with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import anyio.to_thread

from features.config import Config
from features.errors import InputError
from serving.gate import Holder
from serving.load import LoadedModel, current_model, degraded_since, resolve
from serving.log.engine import LogUnavailable
from serving.problems import where
from serving.salt import Salt
from serving.scorer import Scorer
from serving.snapshot import (
    Snapshot,
    current_name,
    ensure_snapshot,
    open_snapshot,
    snapshots_folder,
)
from serving.startup import register_configured
from uplift.errors import UpliftError

LOOK_SECONDS = 5.0
SYNC_SECONDS = 60.0
log = logging.getLogger("serving")
Pair = tuple[str, str]


def current_pair(config: Config, root: Path = Path("data")) -> Pair | None:
    """(sha256 of the bundle, snapshot id) that are current on this disk, if both are there."""
    try:
        current = json.loads((root / "bundles" / config.name / "current.json").read_bytes())
        sha256 = str(current["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = current_name(snapshots_folder(config, root))
    return None if name is None else (sha256, name)


def renewed(scorer: Scorer, root: Path = Path("data")) -> Scorer | None:
    """A scorer of the current model and snapshot; None where the scorer has them already.

    Raises InputError or UpliftError for what does not verify, or does not go together.
    """
    config = scorer.config
    pair = current_pair(config, root)
    if pair is None or pair == _pair_of(scorer):
        return None
    model = current_model(config, root)
    snapshot = open_snapshot(snapshots_folder(config, root) / pair[1], model)
    return Scorer(model, snapshot, config, scorer.salt, scorer.clock)


def _pair_of(scorer: Scorer) -> Pair:
    return scorer.model.sha256, scorer.snapshot.snapshot_id


async def keep_current(
    holder: Holder, root: Path = Path("data"), seconds: float = LOOK_SECONDS
) -> None:
    """Look again and again, until cancelled, and swap what has become current.

    What was refused is not tried again; the old pair goes on, and a metric counts. Whatever else
    fails is tried again. While the log is away, what was loaded waits.
    """
    refused: Pair | None = None
    ready: Scorer | None = None
    while True:
        await asyncio.sleep(seconds)
        scorer, service = holder.scorer, holder.service
        if scorer is None or service is None:
            continue
        holder.told = degraded_since(scorer.config, root)
        pair = current_pair(scorer.config, root)
        if pair == refused:
            continue
        try:
            if ready is None or _pair_of(ready) != pair:
                ready = await anyio.to_thread.run_sync(renewed, scorer, root)
                if ready is None:
                    continue
            await anyio.to_thread.run_sync(register_configured, service, ready)
        except LogUnavailable as error:
            log.warning("a new model or snapshot waits for the log: %s", error)
            continue
        except (InputError, UpliftError) as error:
            # Between the two renames of a sync the pair may not go together yet.
            if pair == current_pair(scorer.config, root):
                refused = pair
                service.metrics.load_failures.labels("pair").inc()
                log.error("a new model or snapshot was refused, the old ones go on: %s", error)
            continue
        except Exception as error:
            service.metrics.load_failures.labels("pair").inc()
            log.error("a new model or snapshot has to wait, the old ones go on: %s", where(error))
            continue
        holder.scorer, found, ready = ready, ready, None
        log.info(
            "now serving version %s of %s, snapshot %s",
            found.model.version,
            found.model.name,
            found.snapshot.snapshot_id,
        )


def sync(
    config: Config,
    salt: Salt,
    *,
    root: Path = Path("data"),
    fetch: Callable[[Config], LoadedModel] | None = None,
    now: datetime | None = None,
) -> Snapshot:
    """Bring the model that the alias names, and a snapshot of it that is fit to serve.

    A snapshot is made anew at half of the age at which servers would refuse to decide by it.
    """
    model = (fetch or resolve)(config)
    half = timedelta(hours=config.serving.max_feature_age_hours) / 2
    return ensure_snapshot(config, model, salt, root=root, now=now, most_age=half)


def sync_forever(config: Config, salt: Salt, seconds: float = SYNC_SECONDS) -> None:
    """Sync again and again; a failure is logged, and the next round tries anew. What is built gives
    way to the servers beside it."""
    os.nice(10)
    while True:
        started = time.monotonic()
        try:
            snapshot = sync(config, salt)
            log.info("current: snapshot %s (process %s)", snapshot.snapshot_id, os.getpid())
        except (InputError, UpliftError, OSError) as error:
            log.error("%s", error)
        except Exception as error:
            log.error("defect while syncing: %s", where(error))
        time.sleep(max(1.0, seconds - (time.monotonic() - started)))
