from __future__ import annotations

import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import ConfigError, DataError
from serving.campaign import Campaign, decide_all
from serving.population import NEVER, Labels, Population
from serving.salt import Salt
from serving.snapshot import (
    CURRENT,
    build_snapshot,
    current_name,
    ensure_snapshot,
    open_snapshot,
    write_snapshot,
)
from tests.unit.serving.small_shop import AS_OF, SALT, Shop, make_config
from uplift.bundle import Scores


@pytest.fixture
def copy(shop: Shop, tmp_path: Path) -> Path:
    """The current snapshot's folder, in a `data` folder of its own."""
    shutil.copytree(shop.root / "data/snapshots", tmp_path / "snapshots")
    return tmp_path / "snapshots/spring" / shop.snapshot.snapshot_id


def _never(_: datetime) -> Population:
    raise AssertionError("built again")


def test_what_is_opened_is_what_was_written(shop: Shop) -> None:
    opened, made = shop.snapshot.population, shop.population
    for name in ("customer_id", "X", "rfm", "consent", "free_at"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(made, name))
    for name, values in vars(made.scores).items():
        assert getattr(opened.scores, name).tobytes() == values.tobytes()
    assert opened.tier.texts().tolist() == made.tier.texts().tolist()
    assert isinstance(opened.X.base, np.memmap)
    assert not opened.X.flags.writeable


def test_the_shadow_price_is_the_whole_campaigns(shop: Shop) -> None:
    campaign = Campaign.of(shop.config, shop.model.bundle)
    made = decide_all(shop.population, campaign, SALT)
    assert shop.snapshot.shadow_price == made.shadow_price > 0
    assert made.certificate is not None
    assert made.certificate.spend <= 120


@pytest.mark.parametrize("fault", ["cut", "altered", "missing", "manifest", "no manifest"])
def test_a_damaged_snapshot_is_refused_and_then_built_again(
    shop: Shop, copy: Path, fault: str
) -> None:
    victim = copy / ("manifest.json" if "manifest" in fault else "reward.npy")
    content = bytearray(victim.read_bytes())
    if fault == "cut":
        victim.write_bytes(content[:-8])
    elif fault in ("missing", "no manifest"):
        victim.unlink()
    elif fault == "altered":
        content[-1] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content.replace(b'"rows": 300', b'"rows": 299'))
    with pytest.raises(DataError, match="Build the snapshot again"):
        open_snapshot(copy, shop.model)
    again = ensure_snapshot(
        shop.config, shop.model, SALT, root=copy.parents[2], build=lambda _: shop.population
    )
    assert again.snapshot_id == shop.snapshot.snapshot_id


def test_another_models_snapshot_is_refused(shop: Shop, copy: Path) -> None:
    with pytest.raises(DataError, match="bundle_sha256 of the served model"):
        open_snapshot(copy, replace(shop.model, sha256="0" * 64))
    narrow = replace(shop.model.bundle, schema=replace(shop.model.bundle.schema, names=("a",)))
    with pytest.raises(DataError, match="features of the served model"):
        open_snapshot(copy, replace(shop.model, bundle=narrow))


def test_the_current_snapshot_is_used_while_it_fits(shop: Shop, copy: Path) -> None:
    def ensured(**changes: Any) -> str:
        arguments = {"config": shop.config, "model": shop.model, "salt": SALT, **changes}
        return ensure_snapshot(root=copy.parents[2], build=_never, **arguments).snapshot_id

    assert ensured() == shop.snapshot.snapshot_id
    slower = shop.config.training.model_copy(update={"folds": 9})
    assert ensured(config=shop.config.model_copy(update={"training": slower}))
    for changes in (
        {"model": replace(shop.model, sha256="0" * 64)},
        {"config": make_config(shop.root / "tables", policy={"budget": 7})},
        {"as_of": AS_OF + timedelta(days=1)},
    ):
        with pytest.raises(AssertionError, match="built again"):
            ensured(**changes)


def test_a_live_snapshot_is_rebuilt_when_it_is_too_old(shop: Shop, tmp_path: Path) -> None:
    live = shop.config.source.model_copy(update={"as_of": "now"})
    config = shop.config.model_copy(update={"source": live})
    write_snapshot(shop.population, shop.model, config, SALT, tmp_path)

    def ensured(age: timedelta) -> str:
        return ensure_snapshot(
            config, shop.model, SALT, root=tmp_path, build=_never, now=AS_OF + age
        ).snapshot_id

    assert ensured(timedelta(hours=50))
    with pytest.raises(AssertionError, match="built again"):
        ensured(timedelta(hours=50, seconds=1))
    with pytest.raises(AssertionError, match="built again"):
        ensured(-timedelta(minutes=6))


def test_another_salt_stops_the_start(shop: Shop, copy: Path) -> None:
    other = Salt(b"another salt, which is long enough too", "data/salt")
    for call in (ensure_snapshot, build_snapshot):
        with pytest.raises(ConfigError, match="Restore the salt"):
            call(shop.config, shop.model, other, root=copy.parents[2], build=_never)


def test_old_snapshots_go_and_the_current_one_stays(shop: Shop, tmp_path: Path) -> None:
    for day in range(5):
        people = replace(shop.population, as_of=AS_OF + timedelta(days=day))
        last = write_snapshot(people, shop.model, shop.config, SALT, tmp_path)
    home = tmp_path / "snapshots/spring"
    assert current_name(home) == last.name
    assert len([f for f in home.iterdir() if f.is_dir()]) == 3


def test_a_pointer_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / CURRENT).write_text('{"snapshot_id": "../elsewhere"}')
    assert current_name(tmp_path) is None


def test_many_customers_open_quickly(shop: Shop, tmp_path: Path) -> None:
    n = 60_000
    times = -(-n // 300)
    ids = np.char.add("c-", np.char.zfill(np.arange(n).astype(str), 7)).astype(np.bytes_)
    made = shop.population

    def tiled(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values] * times)[:n]

    people = Population(
        as_of=datetime(2026, 1, 1, tzinfo=UTC),
        customer_id=ids,
        X=tiled(made.X),
        scores=Scores(**{k: tiled(v) for k, v in vars(made.scores).items()}),
        tier=Labels(tiled(made.tier.codes), made.tier.names),
        stage=Labels(tiled(made.stage.codes), made.stage.names),
        labels=Labels(tiled(made.labels.codes), made.labels.names),
        rfm=tiled(made.rfm),
        consent=tiled(made.consent),
        free_at=np.full(n, NEVER),
    )
    folder = write_snapshot(people, shop.model, shop.config, SALT, tmp_path)
    started = time.perf_counter()
    opened = open_snapshot(folder, shop.model)
    assert time.perf_counter() - started < 1.0  # a million take less than this on one core
    assert opened.population.find(["c-0059999"])[0].tolist() == [59_999]
