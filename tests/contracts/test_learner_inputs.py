"""What every registered learner owes to row weights and to monotone constraints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.contracts.learner_cases import (
    FOLDS,
    SETTINGS,
    every_learner,
    experiment,
    fitted,
    fresh,
    problem,
)
from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.errors import DesignError
from uplift.learners import LEARNERS, make_learner
from uplift.nuisances import Problem, prepare

pytestmark = pytest.mark.usefixtures("small_forests")


@every_learner
def test_a_weight_of_two_is_two_rows(name: str) -> None:
    """Integer weights and repeated rows give the same effects, to rounding, where a leaf may hold
    any number of rows; the forest draws rows at random and is only asked to follow the weight."""
    rng = np.random.default_rng(11)
    n = 700
    X = rng.integers(0, 6, (n, 3)).astype(np.float32)  # few values: the bins don't change
    assignment = np.where(X[:, [0]] > 2, [[0.5, 0.5]], [[0.3, 0.7]])
    arm = draw_arms(assignment, rng)
    y = X[:, 0] - 2.0 + 2.0 * arm * (X[:, 1] > 2) + rng.standard_normal(n)  # half are above 0
    weight = np.where(rng.random(n) < 0.5, 2.0, 1.0)
    weighted = replace(training_set(X, arm, y, assignment), weight=weight)
    times = np.repeat(np.arange(n), weight.astype(int))
    repeated = replace(training_set(X, arm, y, assignment).rows(times), weight=np.ones(len(times)))
    exact = replace(
        SETTINGS, min_child_samples=1, feature_fraction=1.0, num_leaves=4, learning_rate=0.3
    )
    found, expected = (
        make_learner(name).fit(problem_of(data, exact, FOLDS)).model.predict(X, 1)
        for data in (weighted, repeated)
    )
    if name == "causalml_forest":
        gaps = [found[X[:, 1] > 2].mean() - found[X[:, 1] <= 2].mean()]
        assert gaps == pytest.approx([2.0], abs=1.0)
        return
    plain = make_learner(name).fit(problem_of(replace(weighted, weight=None), exact, FOLDS))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(plain.model.predict(X, 1) - expected).max() > 1e-3


@every_learner
def test_rows_that_weigh_more_decide(name: str) -> None:
    """Half of the rows say that the arm adds 2, the other half that it adds nothing; nothing tells
    them apart but a weight of 9 to 1."""
    rng = np.random.default_rng(12)
    n = 2400
    X = rng.standard_normal((n, 2)).astype(np.float32)
    arm = rng.integers(0, 2, n)
    changed = rng.random(n) < 0.5
    y = 2.0 * X[:, 0] + 3.0 + 2.0 * arm * changed + rng.standard_normal(n)
    data = training_set(X, arm, y, np.full((n, 2), 0.5))
    heavy = replace(data, weight=np.where(changed, 0.9, 0.1))
    for weighed, truth in ((data, 1.0), (heavy, 1.8)):
        made = make_learner(name).fit(problem_of(weighed, SETTINGS, FOLDS))
        shrinks = 0.35 * truth if name in ("s", "two_part") else 0.0  # amounts are learned by S
        assert -0.3 - shrinks < made.oof.mean() - truth < 0.3


@every_learner
def test_the_order_of_a_categorys_levels_says_nothing_unless_it_is_declared(name: str) -> None:
    """Levels under other codes are the same customers; a learner that reads positions says so."""
    data = experiment("money")
    codes = np.array([2.0, 0.0, 3.0, 1.0], dtype=np.float32)
    renamed = data.X.copy()
    known = ~np.isnan(renamed[:, 3])
    renamed[known, 3] = codes[renamed[known, 3].astype(int)]
    found, again = (
        make_learner(name).fit(problem_of(one, SETTINGS, FOLDS)).oof
        for one in (data, replace(data, X=renamed))
    )
    assert np.allclose(found, again, rtol=0, atol=1e-9) != LEARNERS[name].ordinal


def monotone(outcome: str, **signs: int) -> Problem:
    base = problem(outcome)
    return prepare(base.data, base.binned, base.target, base.fold, SETTINGS, base.seed, signs)


@every_learner
def test_monotone_constraints_are_kept_or_refused(name: str) -> None:
    """No effect falls with `a`, on which none depends, nor rises with `c`, with which one does."""
    constrained = monotone("money", a=1, c=-1)
    if "monotone" in LEARNERS[name].cannot:
        said = rf"learner {name} cannot keep monotone constraints, found some for a, c\. Leave it"
        with pytest.raises(DesignError, match=said):
            make_learner(name).fit(constrained)
        return
    made, free = make_learner(name).fit(constrained), fitted(name, "money")
    X = np.repeat(fresh("money"), 9, axis=0)
    for column, sign in ((0, 1), (2, -1)):
        line = X.copy()
        line[:, column] = np.tile(np.linspace(-2, 2, 9), len(X) // 9)
        steps = sign * np.diff(made.model.predict(line, 1).reshape(-1, 9, 2), axis=1)
        assert steps.min() >= -1e-9
        free_steps = sign * np.diff(free.model.predict(line, 1).reshape(-1, 9, 2), axis=1)
        assert free_steps.min() < -1e-3, "the constraint was kept by chance"


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({"z": 1}, r"training\.monotone: no numeric feature is called z: expected some of a, b, c"),
        ({"d": 1}, r"no numeric feature is called d: .*A category has no order"),
        ({"a": 2}, r"training\.monotone: expected 1 or -1 for a feature, found \{'a': 2\}"),
    ],
)
def test_monotone_constraints_that_make_no_sense(signs: dict[str, int], said: str) -> None:
    with pytest.raises(DesignError, match=said):
        monotone("money", **signs)


def test_weights_that_are_no_weights() -> None:
    data = experiment("money")
    for bad in (0.0, -1.0, np.nan):
        weight = np.where(np.arange(len(data)) == 3, bad, 1.0)
        with pytest.raises(DesignError, match="row weights must be finite and above 0, found"):
            replace(data, weight=weight)
