"""Which learners are fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.config import LEARNERS
from tests.truth.worlds import TABLE_SETTINGS, make_world, problem_of, training_set
from tests.unit.training.shops import wide_config
from training.fit import learner_names
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
