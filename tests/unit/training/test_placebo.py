"""Where there is nothing to find, nothing is found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.sources import open_source
from tests.unit.training.shops import random_experiment, wide_config
from tests.unit.uplift.test_diagnostics import experiment as drawn
from tests.unit.uplift.test_diagnostics import normal_frame
from training.__main__ import main
from training.dataset import Dataset, build_dataset
from training.placebo import (
    RANDOM,
    PlaceboRun,
    permuted_arms,
    placebo_run,
    with_random_feature,
)
from training.train import offers_of


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    folder = random_experiment(tmp_path_factory.mktemp("p") / "t", 3000, effect=1.5)
    config = wide_config(folder)
    return build_dataset(open_source(config).tables(), config, offers_of(config)), folder


def run(dataset: Dataset, folder: Path) -> PlaceboRun:
    config = wide_config(folder)
    return placebo_run(dataset, config, offers_of(config), len(dataset.training), lambda text: None)


def test_permuted_arms_keep_the_design_and_lose_the_effect(
    experiment: tuple[Dataset, Path],
) -> None:
    dataset, folder = experiment
    mixed = permuted_arms(dataset, np.random.default_rng(1))
    counts = np.bincount(dataset.training.arm)
    assert np.array_equal(np.bincount(mixed.training.arm), counts)
    agree = float(np.mean(mixed.training.arm == dataset.training.arm))
    assert agree == pytest.approx(float(np.sum((counts / 3000) ** 2)), abs=0.04)
    real, placebo = run(dataset, folder), run(mixed, folder)
    assert real.gain.bound > 0
    assert not real.found_nothing
    assert placebo.found_nothing
    for effect in placebo.effects.values():
        assert abs(effect.value) < 4 * effect.se
        assert effect.value < real.effects["c5"].value / 2


def test_arms_stay_with_their_draw(experiment: tuple[Dataset, Path]) -> None:
    rng = np.random.default_rng(2)
    once = drawn(normal_frame(300, 1, rng), rng)
    four = once.rows(np.repeat(np.arange(300), 4))
    arm = permuted_arms(replace(experiment[0], training=four), rng).training.arm.reshape(300, 4)
    assert (arm == arm[:, :1]).all()
    assert np.array_equal(np.bincount(arm[:, 0]), np.bincount(once.arm))
    assert not np.array_equal(arm[:, 0], once.arm)


def test_a_random_feature_has_next_to_no_share(experiment: tuple[Dataset, Path]) -> None:
    dataset, folder = experiment
    wider = with_random_feature(dataset, np.random.default_rng(3))
    shares = run(wider, folder).importance
    assert shares[RANDOM] < 0.1
    assert shares[RANDOM] < shares["x1"] / 4


def test_the_command_tells_what_was_found_where_nothing_is(
    experiment: tuple[Dataset, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The experiment has an effect; with its arms permuted nothing passes."""
    config = tmp_path / "wide.yaml"
    config.write_text(wide_config(experiment[1]).model_dump_json(), encoding="utf-8")
    assert main(["placebo", "--config", str(config), "--runs", "2"]) == 0
    told = capsys.readouterr().out
    assert "permuted arms, run 2 of 2" in told
    assert len(re.findall(r"^  [12] +-?\d.*fallback_no_offer +[12] of 2$", told, re.M)) == 2
    assert "0 of 2 let anything pass; by chance one in twenty may." in told
    share = re.search(r"A random feature gets (\S+)% .*more than [012] of 3 others\.", told)
    assert share is not None
    assert float(share[1]) < 10
    assert main(["placebo", "--config", str(config), "--runs", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --runs: expected at least one run")
