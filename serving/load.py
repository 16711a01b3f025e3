"""Get the model that the registry's alias names, verified, and never anything that runs code.

Only bytes whose sha256 the registry's tag vouches for are loaded, as LightGBM text and arrays. The
last good bundle is kept below `data/bundles/`, so that a server starts without the registry.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from features.config import Config
from features.errors import ConfigError
from uplift.bundle import ScoringBundle, load_bundle
from uplift.errors import BundleError

DEFAULT_TRACKING = "sqlite:///mlruns/mlflow.db"
SHA256_TAG = "bundle_sha256"
BUNDLE_PATH = Path("artifacts/bundle")
# A new bundle is loaded and scored once where a crash is nobody's end but its own.
PROOF = "import sys; from uplift.bundle import load_bundle; load_bundle(sys.argv[1], sys.argv[2])"
PROOF_SECONDS = 60.0
log = logging.getLogger("serving")


class RegistryUnreachable(Exception):
    """The registry gives no answer."""


@dataclass(frozen=True)
class Registered:
    """A registered model version, the hash that its tag vouches for, and when it was registered,
    UTC."""

    version: str
    sha256: str | None
    at: datetime | None = None


class Registry(Protocol):
    """Where models are registered. Methods raise RegistryUnreachable when there is no answer."""

    def find(self, name: str, alias: str) -> Registered | None:
        """The version that carries the alias, if any."""
        ...

    def download(self, name: str, version: str, into: Path) -> Path:
        """Download a version's files into a folder; returns the folder of the bundle."""
        ...


class MlflowRegistry:
    """The MLflow registry of MLFLOW_TRACKING_URI, by default the database below mlruns/."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING

    def find(self, name: str, alias: str) -> Registered | None:
        # To open a database that is not there would make an empty one.
        if self.uri.startswith("sqlite:///") and not Path(self.uri[10:]).is_file():
            raise RegistryUnreachable(f"there is no {self.uri[10:]}")
        # A registry that is down must not hold up a start for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            found = MlflowClient(self.uri, self.uri).get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise RegistryUnreachable(type(error).__name__) from error
        except Exception as error:
            raise RegistryUnreachable(type(error).__name__) from error
        made = found.creation_timestamp
        at = None if made is None else datetime.fromtimestamp(made / 1000, UTC)
        return Registered(str(found.version), found.tags.get(SHA256_TAG), at)

    def download(self, name: str, version: str, into: Path) -> Path:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow.artifacts

        # For the address of a registered model, MLflow looks at the process's own registry.
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{version}", dst_path=str(into)
            )
        except Exception as error:
            raise RegistryUnreachable(f"{type(error).__name__} at the download") from error
        return Path(folder) / BUNDLE_PATH

    def keep(self, name: str, version: str, files: Sequence[Path], folder: str) -> str:
        """Log files as artifacts of the run that a version comes from; returns the run's id."""
        if self.uri.startswith("sqlite:///") and not Path(self.uri[10:]).is_file():
            raise RegistryUnreachable(f"there is no {self.uri[10:]}")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow.tracking import MlflowClient

        try:
            client = MlflowClient(self.uri, self.uri)
            run = client.get_model_version(name, version).run_id
            if not run:
                raise RegistryUnreachable(f"version {version} belongs to no run")
            for path in files:
                client.log_artifact(run, str(path), folder)
        except RegistryUnreachable:
            raise
        except Exception as error:
            raise RegistryUnreachable(type(error).__name__) from error
        return str(run)


@dataclass(frozen=True)
class LoadedModel:
    """A verified bundle, which version it is, what is not as it should be, and when the version
    was registered, UTC (None: an earlier release has brought it, and did not ask)."""

    bundle: ScoringBundle
    name: str
    version: str
    alias: str
    sha256: str
    degraded: tuple[str, ...] = ()
    registered_at: datetime | None = None


def resolve(
    config: Config, registry: Registry | None = None, root: Path = Path("data")
) -> LoadedModel:
    """The bundle behind the alias `serving.model_alias` of the model `name`.

    Without an answer of the registry, or when the new bundle is damaged, the last good bundle is
    taken, and `degraded` says so (`registry_unreachable`, `bundle_rejected`). Raises ConfigError
    when there is none, or when no model carries the alias.
    """
    registry = registry or MlflowRegistry()
    folder = root / "bundles" / config.name
    alias = config.serving.model_alias
    try:
        found = registry.find(config.name, alias)
    except RegistryUnreachable as error:
        return _last_good(root, config, "registry_unreachable", str(error))
    if found is None:
        raise ConfigError(
            "serving.model_alias",
            expected=f"a model {config.name!r} with the alias {alias!r} in MLflow",
            found="none",
            remedy=f"Train one with `make train`; if it was trained, its gate says why it is not "
            f"{alias} (`make mlflow` shows the reasons).",
        )
    if not found.sha256:
        why = f"version {found.version} has no tag {SHA256_TAG}"
        return _last_good(root, config, "bundle_rejected", why)
    kept = folder / found.sha256
    try:
        if not kept.is_dir():
            _fetch(registry, config.name, found, kept)
        bundle = load_bundle(kept, found.sha256)
    except RegistryUnreachable as error:
        return _last_good(root, config, "registry_unreachable", str(error))
    except BundleError as error:
        shutil.rmtree(kept, ignore_errors=True)
        return _last_good(root, config, "bundle_rejected", str(error))
    _tell(folder)
    current = {"name": config.name, "alias": alias, "version": found.version}
    if found.at is not None:
        current["registered_at"] = found.at.isoformat()
    write_atomically(folder / "current.json", {**current, "sha256": found.sha256})
    return LoadedModel(
        bundle, config.name, found.version, alias, found.sha256, registered_at=found.at
    )


def _fetch(registry: Registry, name: str, found: Registered, kept: Path) -> None:
    """Download aside, verify, and only then give the folder its name."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=kept.parent) as aside:
        folder = registry.download(name, found.version, Path(aside))
        assert found.sha256 is not None
        prove(folder, found.sha256)
        load_bundle(folder, found.sha256)
        os.replace(folder, kept)


def prove(folder: Path, sha256: str) -> None:
    """Load a bundle and score its golden rows in a process of its own: LightGBM aborts or is
    killed by some texts, which nothing can catch.

    Raises BundleError where that process is killed, fails or takes longer than PROOF_SECONDS. Not
    even a failure may be left to whoever loads the bundle next: what LightGBM does when it reads
    past the end of a text differs from one process to the next.
    """
    packages = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROOF, str(folder), sha256],
            env={**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=PROOF_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"it could not be loaded within {PROOF_SECONDS:g} seconds") from None
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        end = f"signal {-done.returncode}" if done.returncode < 0 else told
        raise BundleError(f"to load it ends a process with {end}")


def current_model(config: Config, root: Path = Path("data")) -> LoadedModel:
    """The bundle on this disk that was resolved last, verified; the registry is not asked.

    Raises BundleError for one that is damaged, ConfigError where there is none.
    """
    folder, alias = root / "bundles" / config.name, config.serving.model_alias
    try:
        current = json.loads((folder / "current.json").read_bytes())
        if current["alias"] != alias:
            raise KeyError(alias)
        version, sha256 = str(current["version"]), str(current["sha256"])
        told = current.get("registered_at")
        at = None if told is None else datetime.fromisoformat(told)
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            str(folder / "current.json"),
            expected=f"the model {config.name!r} with the alias {alias!r} on this disk",
            found="none",
            remedy="Run: python -m serving sync --config ...",
        ) from None
    bundle = load_bundle(folder / sha256, sha256)
    return LoadedModel(bundle, config.name, version, alias, sha256, registered_at=at)


def _last_good(root: Path, config: Config, degraded: str, why: str) -> LoadedModel:
    try:
        model = current_model(config, root)
    except (OSError, ConfigError, BundleError):
        if degraded == "bundle_rejected":
            raise BundleError(
                f"the registered model {config.name!r} was refused: {why}. No earlier verified "
                "bundle is kept. Train it again with `make train`."
            ) from None
        raise ConfigError(
            "MLflow",
            expected=f"a registry that names the model {config.name!r}",
            found=why,
            remedy="Train a model with `make train` first, or set MLFLOW_TRACKING_URI.",
        ) from None
    log.warning("%s (%s): serving the last good bundle, version %s", degraded, why, model.version)
    _tell(root / "bundles" / config.name, degraded)
    return replace(model, degraded=(degraded,))


def _tell(folder: Path, *degraded: str) -> None:
    """Leave word of what `resolve` found, for servers beside the process that syncs."""
    if _told(folder) != degraded:
        try:
            write_atomically(folder / "degraded.json", list(degraded))
        except OSError as error:
            log.warning("%s: %s", folder / "degraded.json", error.strerror)


def _told(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads((folder / "degraded.json").read_bytes())))
    except (OSError, ValueError, TypeError):
        return ()


def degraded_since(config: Config, root: Path = Path("data")) -> tuple[str, ...]:
    """What is not as it should be with the registry or its newest bundle, by the last time that
    anybody asked for it on this disk."""
    return _told(root / "bundles" / config.name)


def write_atomically(path: Path, content: object) -> None:
    """Write JSON aside, to the disk, then by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(content, out, indent=1, sort_keys=True, allow_nan=False)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
