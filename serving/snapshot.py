"""The feature snapshot: what the server reads, made once per (moment, bundle, rules).

A snapshot is a folder of .npy columns, ordered by customer id and mapped into memory, with the
score table and the shadow price that the campaign's budget comes to. Its manifest, written last,
holds the size and sha256 of every file. A snapshot is never changed: a new one is written aside,
synced, renamed, and then `CURRENT` is switched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.config import Config
from features.errors import ConfigError, DataError
from serving.arms import ArmRules
from serving.campaign import Campaign, config_digest, decide_all, limits_of
from serving.load import LoadedModel, sync_folder, write_atomically
from serving.population import Labels, Population, from_source
from serving.salt import Salt
from uplift.bundle import Scores, ScoringBundle
from uplift.limits import tolls
from uplift.policy import Shares

FORMAT = 2
MANIFEST = "manifest.json"
CURRENT = "CURRENT"
# What a snapshot depends on; the server's and the training's own settings are not among it.
RELEVANT = (
    "name", "source", "engine", "features", "segments", "stage_clocks", "outcome", "currency",
    "timezone", "offers", "policy", "contact", "triggers",
)  # fmt: skip
# Columns of the rules of arms, where the configuration has any.
_ARM_COLUMNS = ("consent", "eligible", "entered", "free_at", "channel")
AHEAD = timedelta(minutes=5)
KEPT = 2
log = logging.getLogger("serving")

Build = Callable[[datetime], Population]


def relevant(config: Config) -> tuple[str, ...]:
    """Sections that a snapshot depends on; audiences only where there are any for rules to name."""
    return (*RELEVANT, "audiences") if config.audiences else RELEVANT


@dataclass(frozen=True)
class Snapshot:
    """An opened snapshot. `shadow_price` is profit per currency of expected cost; `shares` are
    those that the budget can bear."""

    snapshot_id: str
    population: Population
    bundle_sha256: str
    config_digest: str
    salt_fingerprint: str
    shadow_price: float
    shares: Shares
    manifest: Mapping[str, Any]

    @property
    def arms(self) -> tuple[str, ...]:
        """Coupon ids in the order of the columns: the model's, then those that it has not seen."""
        return tuple(self.manifest["arms"])

    @property
    def as_of(self) -> datetime:
        return self.population.as_of


def snapshots_folder(config: Config, root: Path = Path("data")) -> Path:
    return root / "snapshots" / config.name


def write_snapshot(
    population: Population,
    model: LoadedModel,
    config: Config,
    salt: Salt,
    root: Path = Path("data"),
) -> Path:
    """Decide for everyone, write the snapshot, and make it the current one; returns its folder."""
    unseen = () if population.unseen is None else population.unseen.arms
    campaign = Campaign.of(config, model.bundle, unseen=unseen)
    # Quiet hours are of the moment of asking, and say nothing of the price.
    population = replace(population.widened(), quiet_until=None)
    decisions = decide_all(population, campaign, salt)
    if decisions.used:
        prices = {use.name: use.price for use in decisions.used}
        shape, cost = population.scores.cost.shape, population.scores.cost.astype(np.float64)
        toll = tolls(limits_of(campaign, population, cost), prices, shape)
        population = replace(population, toll=toll.astype(np.float32))
    assert decisions.certificate is not None
    reasons, counts = np.unique(decisions.reason.astype(str), return_counts=True)
    home = snapshots_folder(config, root)
    home.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=home))
    try:
        files = {name: _write(aside / f"{name}.npy", a) for name, a in _columns(population).items()}
        content = {
            "format": FORMAT,
            "as_of": population.as_of.isoformat(),
            "bundle_sha256": model.sha256,
            "model_version": model.version,
            "config_digest": config_digest(config, relevant(config)),
            "salt_fingerprint": salt.fingerprint,
            "features": list(model.bundle.schema.names),
            "arms": list(campaign.arms),
            "rows": len(population),
            "tiers": list(population.tier.names),
            "stages": list(population.stage.names),
            "labels": list(population.labels.names),
            "simulated": population.simulated,
            "data_digest": population.data_digest,
            "missing": list(population.missing),
            "notes": list(population.notes),
            "shadow_price": decisions.shadow_price,
            "shares": vars(decisions.shares),
            "certificate": vars(decisions.certificate),
            "limits": [use._asdict() for use in decisions.used],
            "channels": None if population.arms is None else list(population.arms.channels),
            "reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
            "files": files,
        }
        text = json.dumps(content, sort_keys=True, allow_nan=False).encode()
        kind = "sim" if population.simulated else "s"
        digest = hashlib.sha256(text).hexdigest()[:10]
        snapshot_id = f"{kind}-{population.as_of:%Y%m%dT%H%M}-{digest}"
        write_atomically(aside / MANIFEST, {"snapshot_id": snapshot_id, **content})
        folder = home / snapshot_id
        aside.chmod(0o755)
        if folder.exists():
            # The same content has the same name; this copy is whole, the one there may not be.
            folder.rename(aside / "replaced")
        aside.rename(folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
        sync_folder(home)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    write_atomically(home / CURRENT, {"snapshot_id": snapshot_id})
    _prune(home, snapshot_id)
    return folder


def _prune(home: Path, current: str) -> None:
    """Remove all but the current snapshot and the newest others, kept for a way back. A server
    that still has a removed one mapped keeps its mapping."""
    others = [f for f in home.iterdir() if (f / MANIFEST).is_file() and f.name != current]
    others.sort(key=lambda folder: (folder / MANIFEST).stat().st_mtime)
    for folder in others[: max(0, len(others) - KEPT)]:
        shutil.rmtree(folder, ignore_errors=True)


def open_snapshot(folder: Path, model: LoadedModel) -> Snapshot:
    """Verify a snapshot and map it into memory.

    Raises DataError for a file that is missing, cut or altered, for another format, and when
    features, arms or bundle are not the model's.
    """
    manifest = _manifest(folder)
    bundle = model.bundle
    expected = {
        "features": list(bundle.schema.names),
        "arms": list(bundle.arms),
        "bundle_sha256": model.sha256,
    }
    for key, value in expected.items():
        # Coupons that the model has not seen come after its arms.
        if (manifest[key][: len(value)] if key == "arms" else manifest[key]) != value:
            raise _refused(folder, f"{key} of the served model", "others")
    arrays = {}
    for name, entry in manifest["files"].items():
        arrays[name] = _map(folder / f"{Path(name).name}.npy", entry)
    n, d, k = manifest["rows"], len(bundle.schema.names), len(manifest["arms"])
    shapes = {
        "customer_id": (n,), "X": (n, d), "cate": (n, k), "reward": (n, k), "cost": (n, k),
        "response": (n,), "tier": (n,), "stage": (n,), "labels": (n,), "rfm": (n, 3),
        "consent": (n,), "free_at": (n,),
        **{f"value_{target}": (n,) for target in _value_targets(bundle)},
    }  # fmt: skip
    ruled = manifest["channels"] is not None
    if ruled:
        shapes |= {f"arm_{name}": (n, k) for name in _ARM_COLUMNS} | {"arm_entered": (n,)}
    if manifest["limits"]:
        shapes["toll"] = (n, k)
    if {name: a.shape for name, a in arrays.items()} != shapes:
        raise _refused(folder, f"columns of {n} customers", "other shapes")
    population = Population(
        as_of=datetime.fromisoformat(manifest["as_of"]),
        customer_id=arrays["customer_id"],
        X=arrays["X"],
        scores=Scores(arrays["cate"], arrays["reward"], arrays["cost"], arrays["response"]),
        tier=Labels(arrays["tier"], tuple(manifest["tiers"])),
        stage=Labels(arrays["stage"], tuple(manifest["stages"])),
        labels=Labels(arrays["labels"], tuple(manifest["labels"])),
        rfm=arrays["rfm"],
        consent=arrays["consent"],
        free_at=arrays["free_at"],
        values={target: arrays[f"value_{target}"] for target in _value_targets(bundle)},
        simulated=manifest["simulated"],
        data_digest=manifest["data_digest"],
        missing=tuple(manifest["missing"]),
        notes=tuple(manifest["notes"]),
        arms=_arms(manifest["channels"], arrays) if ruled else None,
        toll=arrays.get("toll"),
    )
    return Snapshot(
        snapshot_id=manifest["snapshot_id"],
        population=population,
        bundle_sha256=manifest["bundle_sha256"],
        config_digest=manifest["config_digest"],
        salt_fingerprint=manifest["salt_fingerprint"],
        shadow_price=float(manifest["shadow_price"]),
        shares=Shares(**manifest["shares"]),
        manifest=manifest,
    )


def ensure_snapshot(
    config: Config,
    model: LoadedModel,
    salt: Salt,
    *,
    root: Path = Path("data"),
    as_of: datetime | None = None,
    build: Build | None = None,
    now: datetime | None = None,
    most_age: timedelta | None = None,
) -> Snapshot:
    """The current snapshot, made anew when it is missing, damaged, older than `most_age` (default:
    too old to be served), of another moment, or made with another model or other rules.

    Raises ConfigError when the salt is another one than the current snapshot's: every holdout and
    draw would change under a running campaign.
    """
    home = snapshots_folder(config, root)
    now = now or datetime.now(UTC)
    most_age = most_age or timedelta(hours=config.serving.max_feature_age_hours)
    name = current_name(home)
    why = "there is none"
    if name is not None:
        _same_salt(home / name, salt)
        why = _outdated(home / name, config, model, as_of, now, most_age)
        if not why:
            try:
                return open_snapshot(home / name, model)
            except DataError as error:
                why = str(error)
                shutil.rmtree(home / name, ignore_errors=True)
    log.info("building a snapshot (%s)", why)
    return build_snapshot(config, model, salt, root=root, as_of=as_of, build=build)


def build_snapshot(
    config: Config,
    model: LoadedModel,
    salt: Salt,
    *,
    root: Path = Path("data"),
    as_of: datetime | None = None,
    build: Build | None = None,
) -> Snapshot:
    """Build a snapshot as of a moment (default: what the configuration says), and make it current.

    Raises ConfigError for another salt, as `ensure_snapshot`.
    """
    home = snapshots_folder(config, root)
    name = current_name(home)
    if name is not None:
        _same_salt(home / name, salt)
    moment = config.as_of(as_of)
    population = build(moment) if build else from_source(config, model.bundle, moment, threads=0)
    return open_snapshot(write_snapshot(population, model, config, salt, root), model)


def current_name(home: Path) -> str | None:
    """The folder that CURRENT names, if any."""
    try:
        name = json.loads((home / CURRENT).read_bytes())["snapshot_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and Path(name).name == name else None


def _outdated(
    folder: Path,
    config: Config,
    model: LoadedModel,
    as_of: datetime | None,
    now: datetime,
    most_age: timedelta,
) -> str:
    """Why a snapshot can't be served, or an empty text."""
    try:
        manifest = _manifest(folder)
    except DataError as error:
        return str(error)
    moment = datetime.fromisoformat(manifest["as_of"])
    wanted = as_of or (config.source.as_of if config.source.as_of != "now" else None)
    if manifest["bundle_sha256"] != model.sha256:
        return "the model is another one"
    if manifest["config_digest"] != config_digest(config, relevant(config)):
        return "the configuration has changed"
    if wanted is not None and moment != wanted:
        return "as_of is another one"
    if wanted is None and now - moment > most_age:
        return f"it is older than {most_age / timedelta(hours=1):g} hours"
    if wanted is None and moment - now > AHEAD:
        return "its as_of lies ahead"
    return ""


def _same_salt(folder: Path, salt: Salt) -> None:
    try:
        known = _manifest(folder)["salt_fingerprint"]
    except DataError:
        return
    if known != salt.fingerprint:
        raise ConfigError(
            salt.origin,
            expected=f"the salt with fingerprint {known}, which the current snapshot was made with",
            found=f"one with {salt.fingerprint}",
            remedy="Restore the salt. To begin anew, with other holdouts, remove "
            f"{folder.parent / CURRENT}.",
        )


def _columns(population: Population) -> dict[str, npt.NDArray[Any]]:
    return {
        "customer_id": population.customer_id,
        "X": population.X,
        **vars(population.scores),
        "tier": population.tier.codes,
        "stage": population.stage.codes,
        "labels": population.labels.codes,
        "rfm": population.rfm,
        "consent": population.consent,
        "free_at": population.free_at,
        **({} if population.toll is None else {"toll": population.toll}),
        **_arm_columns(population.arms),
        **{f"value_{target}": values for target, values in population.values.items()},
    }


def _arms(channels: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]]) -> ArmRules:
    return ArmRules(
        channels=tuple(channels),
        consent=arrays["arm_consent"],
        eligible=arrays["arm_eligible"],
        entered=arrays["arm_entered"],
        free_at=arrays["arm_free_at"],
        channel=arrays["arm_channel"],
    )


def _arm_columns(arms: ArmRules | None) -> dict[str, npt.NDArray[Any]]:
    return {} if arms is None else {f"arm_{name}": getattr(arms, name) for name in _ARM_COLUMNS}


def _value_targets(bundle: ScoringBundle) -> list[str]:
    return [] if bundle.values is None else list(bundle.values.models)


def _write(path: Path, values: npt.NDArray[Any]) -> dict[str, Any]:
    with path.open("wb") as out:
        np.save(out, np.ascontiguousarray(values), allow_pickle=False)
        out.flush()
        os.fsync(out.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _map(path: Path, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise _refused(path, f"{entry['bytes']} bytes", str(size))
        if _sha256(path) != entry["sha256"]:
            raise _refused(path, f"sha256 {entry['sha256'][:12]}…", "another")
        # As a plain array: np.memmap takes its time with every row that is picked.
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise _refused(path, "a readable column", type(error).__name__) from None
    return mapped


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest["format"] != FORMAT:
            raise ValueError
        digest = manifest["snapshot_id"].rpartition("-")[2]
        content = {key: value for key, value in manifest.items() if key != "snapshot_id"}
        text = json.dumps(content, sort_keys=True, allow_nan=False).encode()
        if not hashlib.sha256(text).hexdigest().startswith(digest):
            raise ValueError
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _refused(folder / MANIFEST, "a whole manifest", type(error).__name__) from None
    return manifest


def _refused(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        str(path),
        expected=expected,
        found=found,
        remedy="Build the snapshot again: python -m serving snapshot --config ...",
    )
