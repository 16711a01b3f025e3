from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from features.errors import ConfigError
from serving import load
from serving.load import (
    MlflowRegistry,
    Registered,
    RegistryUnreachable,
    current_model,
    degraded_since,
    resolve,
)
from tests.unit.serving.small_shop import Shop
from uplift.errors import BundleError


@dataclass
class Shelf:
    """A registry that is a folder."""

    bundle: Path
    found: Registered | None
    down: bool = False
    downloads: list[str] = field(default_factory=list)

    def find(self, name: str, alias: str) -> Registered | None:
        if self.down:
            raise RegistryUnreachable("closed port")
        return self.found

    def download(self, name: str, version: str, into: Path) -> Path:
        self.downloads.append(version)
        return Path(shutil.copytree(self.bundle, into / "artifacts" / "bundle"))


@pytest.fixture(autouse=True)
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each new bundle takes seconds; the tests of faults have it."""
    monkeypatch.setattr(load, "prove", lambda *_: None)


@pytest.fixture
def shelf(shop: Shop, tmp_path: Path) -> Shelf:
    kept = shop.root / "data/bundles/spring" / shop.model.sha256
    copy = Path(shutil.copytree(kept, tmp_path / "registered"))
    return Shelf(copy, Registered("7", shop.model.sha256))


def test_the_alias_is_downloaded_once_verified_and_kept(
    shop: Shop, shelf: Shelf, tmp_path: Path
) -> None:
    for _ in range(2):
        model = resolve(shop.config, shelf, tmp_path)
        assert (model.version, model.sha256, model.degraded) == ("7", shop.model.sha256, ())
    assert shelf.downloads == ["7"]
    current = json.loads((tmp_path / "bundles/spring/current.json").read_bytes())
    assert current["version"] == "7"
    X = shop.population.X
    np.testing.assert_array_equal(model.bundle.score(X, 1).cate, shop.population.scores.cate)


def test_without_the_registry_the_last_good_bundle_serves(
    shop: Shop, shelf: Shelf, tmp_path: Path
) -> None:
    resolve(shop.config, shelf, tmp_path)
    shelf.down = True
    model = resolve(shop.config, shelf, tmp_path)
    assert (model.version, model.degraded) == ("7", ("registry_unreachable",))
    assert degraded_since(shop.config, tmp_path) == ("registry_unreachable",)
    shelf.down = False
    resolve(shop.config, shelf, tmp_path)
    assert degraded_since(shop.config, tmp_path) == ()


@pytest.mark.parametrize("fault", ["cut", "altered", "missing", "other manifest", "no tag"])
def test_a_bad_bundle_is_rejected_and_the_last_good_one_stays(
    shop: Shop, shelf: Shelf, tmp_path: Path, fault: str
) -> None:
    with pytest.raises(BundleError, match="was refused"):
        _spoil(Shelf(Path(shutil.copytree(shelf.bundle, tmp_path / "bad")), shelf.found), fault)(
            shop, tmp_path / "empty"
        )
    resolve(shop.config, shelf, tmp_path / "used")
    shutil.rmtree(tmp_path / "bad")
    worse = Shelf(Path(shutil.copytree(shelf.bundle, tmp_path / "bad")), Registered("8", "f" * 64))
    model = resolve(shop.config, worse, tmp_path / "used")
    assert (model.version, model.degraded) == ("7", ("bundle_rejected",))
    assert not (tmp_path / "used/bundles/spring" / ("f" * 64)).exists()


def _spoil(shelf: Shelf, fault: str):  # type: ignore[no-untyped-def]
    victim = sorted(shelf.bundle.glob("*.txt"))[0]
    if fault == "cut":
        victim.write_bytes(victim.read_bytes()[:-50])
    elif fault == "altered":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif fault == "missing":
        victim.unlink()
    elif fault == "other manifest":
        path = shelf.bundle / "manifest.json"
        path.write_bytes(path.read_bytes() + b" ")
    else:
        assert shelf.found is not None
        shelf.found = Registered(shelf.found.version, None)
    return lambda shop, root: resolve(shop.config, shelf, root)


def test_nothing_trained_yet_says_what_to_type(shop: Shop, tmp_path: Path) -> None:
    missing = MlflowRegistry(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    with pytest.raises(ConfigError, match="make train"):
        resolve(shop.config, missing, tmp_path)
    assert not (tmp_path / "mlruns").exists()


def test_no_champion_is_told_apart_from_no_registry(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"alias 'champion' in MLflow, found none.*gate"):
        resolve(shop.config, Shelf(tmp_path, None), tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """A process that has trained in another store, which MLflow remembers."""
    import mlflow

    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/elsewhere.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/elsewhere.db")
    yield
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registry)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_an_mlflow_registry(shop: Shop, shelf: Shelf, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_registered_model("spring")
    logged = tmp_path / "logged"
    shutil.copytree(shelf.bundle, logged / "artifacts" / "bundle")
    made = client.create_model_version("spring", source=logged.as_uri())
    registry = MlflowRegistry(uri)
    assert registry.find("spring", "champion") is None
    client.set_model_version_tag("spring", made.version, "bundle_sha256", shop.model.sha256)
    client.set_registered_model_alias("spring", "champion", made.version)
    model = resolve(shop.config, registry, tmp_path / "data")
    assert (model.version, model.sha256, model.degraded) == ("1", shop.model.sha256, ())
    # How old the model is goes by its registration, also for a server that asks the disk alone.
    assert model.registered_at is not None
    assert abs(datetime.now(UTC) - model.registered_at) < timedelta(hours=1)
    assert current_model(shop.config, tmp_path / "data").registered_at == model.registered_at


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore")
def test_files_are_kept_with_the_run_that_a_version_comes_from(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    registry = MlflowRegistry(uri)
    told = tmp_path / "plan.csv"
    told.write_text("budget\n1\n")
    with pytest.raises(RegistryUnreachable, match="there is no"):
        registry.keep("spring", "1", [told], "plan/now")
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("spring", artifact_location=(tmp_path / "a").as_uri())
    run = client.create_run(experiment).info.run_id
    client.create_registered_model("spring")
    for run_id in (run, None):
        client.create_model_version("spring", source=tmp_path.as_uri(), run_id=run_id)
    assert registry.keep("spring", "1", [told], "plan/now") == run
    assert [a.path for a in client.list_artifacts(run, "plan/now")] == ["plan/now/plan.csv"]
    assert Path(client.download_artifacts(run, "plan/now/plan.csv")).read_text() == told.read_text()
    with pytest.raises(RegistryUnreachable, match="version 2 belongs to no run"):
        registry.keep("spring", "2", [told], "plan/now")
    with pytest.raises(RegistryUnreachable, match="MlflowException"):
        registry.keep("spring", "9", [told], "plan/now")
