"""LightGBM's data set is binned once, and all arms, folds and learners share it."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import pytest

from tests.contracts.learner_cases import FOLDS, SETTINGS, every_outcome, experiment
from tests.truth.worlds import problem_of
from uplift.learners import LEARNERS, make_learner
from uplift.learners.base import Fitted

pytestmark = pytest.mark.usefixtures("small_forests")


@every_outcome
def test_every_learner_of_a_problem_takes_the_same_two_binned_matrices(
    outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features, and once more with a column for each arm, for all who learn with the arm as a
    feature (S, and two_part's amounts). Everything else is a subset of one of the two."""
    shapes: list[tuple[int, ...]] = []
    subsets = []
    made = lgb.Dataset.__init__

    def counted(self: lgb.Dataset, data: Any, *args: Any, **known: Any) -> None:
        if known.get("reference") is None:
            shapes.append(data.shape)
        else:
            subsets.append(known["reference"])
        made(self, data, *args, **known)

    monkeypatch.setattr(lgb.Dataset, "__init__", counted)
    data = experiment(outcome)
    problem = problem_of(data, SETTINGS, FOLDS)
    able = [name for name in LEARNERS if outcome in LEARNERS[name].outcomes]
    fitted: dict[str, Fitted] = {}
    for name in sorted(able, key=lambda name: LEARNERS[name].combines):
        fitted[name] = make_learner(name, fitted).fit(problem)
    rows, features = data.X.shape
    assert shapes == [(rows, features), (rows, features + data.n_arms)]
    assert len({id(whole) for whole in subsets}) == 2
    assert len(subsets) > 10 * len(able)
