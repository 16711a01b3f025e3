"""Which learners are fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.config import LEARNERS
from features.registry import feature_names, get
from features.sources import open_source
from tests.truth.worlds import TABLE_SETTINGS, make_world, problem_of, training_set
from tests.unit.training.shops import config_of, random_experiment, wide_config
from training.dataset import build_dataset
from training.fit import fit_models, leading_features, learner_names
from training.train import offers_of
from uplift.nuisances import Problem


def problem(world: str) -> Problem:
    made = make_world(world, 400, np.random.default_rng(1))
    return problem_of(training_set(made.X, made.arm, made.y, made.assignment), TABLE_SETTINGS, 2)


def test_unnamed_learners_are_those_that_learn_the_outcome() -> None:
    """A learner that is named is fitted, or refuses by its name; of the defaults the able ones."""
    default = wide_config(Path("."), training={})
    named = wide_config(Path("."), training={"learners": list(LEARNERS)})
    assert learner_names(default, problem("zeros")) == list(LEARNERS)
    assert learner_names(named, problem("binary")) == list(LEARNERS)
    without = [name for name in LEARNERS if name != "two_part"]
    assert learner_names(default, problem("binary")) == without


def test_the_core_set_leads_in_the_whole_catalogue_and_nowhere_else() -> None:
    everything = config_of(Path("."), features={"set": "all"})
    names = [*feature_names(everything), "a_given_column"]
    leading = [names[i] for i in leading_features(everything, names)]
    core = feature_names(config_of(Path("."), features={"set": "core"}))
    assert leading == [name for name in names if name in core]
    assert len(leading) == len(core) > 10
    assert all(get(name).core for name in leading)
    for chosen in ("core", names[:-1]):
        assert leading_features(config_of(Path("."), features={"set": chosen}), names) == ()
    assert leading_features(everything, leading) == ()


def test_leading_features_reach_the_models_of_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.leading_features", lambda config, names: (1,))
    config = wide_config(random_experiment(tmp_path, 600), training={"learners": ["x"]})
    dataset = build_dataset(open_source(config).tables(), config, offers_of(config))
    models = fit_models(dataset, config, offers_of(config), lambda _: None)
    assert models.outcome.settings.leading == models.money.settings.leading == (1,)
