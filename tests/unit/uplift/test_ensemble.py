"""The ensemble's weights: against brute force, and on members whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift.boosting import Settings
from uplift.data import FloatArray
from uplift.effects import EffectModel
from uplift.learners import Fitted, make_learner
from uplift.learners.ensemble import held_out_weights, starting_shares, variance_of_a_share
from uplift.nuisances import Problem

SETTINGS = Settings(rounds=20, learning_rate=0.1, num_leaves=4, min_child_samples=50, threads=1)
FOLDS = 3


def problem(effect: float, n: int = 4000) -> tuple[Problem, FloatArray]:
    """Two arms whose effect is .3 for everybody plus `effect` times the sign of x0."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 2)).astype(np.float32)
    assignment = np.tile([0.4, 0.3, 0.3], (n, 1))
    arm = draw_arms(assignment, rng)
    tau = 0.3 + effect * np.sign(X[:, 0].astype(float))
    y = tau * (arm > 0) + 0.5 * rng.standard_normal(n)
    return problem_of(training_set(X, arm, y, assignment), SETTINGS, FOLDS), tau


def member(name: str, oof: FloatArray, constant: float) -> Fitted:
    """Made up: effects (n,) for both arms, and models that tell who they are by a constant."""
    model = EffectModel(np.full(2, constant))
    return Fitted(name, np.column_stack([oof, oof]), model, (model,) * FOLDS)


@pytest.mark.parametrize("seed", range(8))
def test_the_weights_are_the_best_there_are(seed: int) -> None:
    """No point of a fine grid over the simplex is better; weights may not sum to 1."""
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((50, 3)) + rng.standard_normal((50, 1))
    aim = design @ rng.uniform(-0.2, 0.6, 3) + 0.5 * rng.standard_normal(50)
    gram, target = design.T @ design, design.T @ aim
    found = held_out_weights(gram, target)
    assert (found >= 0).all()
    assert found.sum() <= 1 + 1e-9
    step = np.linspace(0, 1, 51)
    grid = np.array(np.meshgrid(step, step, step)).reshape(3, -1).T
    grid = grid[grid.sum(axis=1) <= 1 + 1e-9]
    loss = np.einsum("ij,jk,ik->i", grid, gram, grid) - 2 * grid @ target
    assert found @ gram @ found - 2 * target @ found <= loss.min() + 1e-6 * np.abs(loss).max()


def test_members_that_are_all_nothing_or_all_alike() -> None:
    assert held_out_weights(np.zeros((2, 2)), np.zeros(2)).tolist() == [0, 0]
    alike = held_out_weights(np.full((3, 3), 2.0), np.full(3, 1.0))
    assert alike.sum() == pytest.approx(0.5)


@pytest.mark.parametrize(("rows", "low", "high"), [(250, 0.3, 0.7), (4000, 0.9, 0.98)])
def test_more_rows_give_the_member_that_is_right_more(rows: int, low: float, high: float) -> None:
    """Of two members one is right: of few rows it gets a little more than the constant effects and
    nothing at all do, of many rows nearly everything."""
    made, tau = problem(0.3, rows)
    noise = 0.1 * np.random.default_rng(1).standard_normal(len(tau))
    others = {"t": member("t", tau, 1.0), "x": member("x", noise, 0.0)}
    fitted = make_learner("ensemble", others).fit(made)
    assert fitted.name == "ensemble"
    assert (fitted.model.constant > low).all()
    assert (fitted.model.constant < high).all()


def test_weights_are_drawn_to_equal_ones_as_far_as_a_fair_draw_of_them_varies() -> None:
    for among in (2, 5, 8):
        drawn = np.random.default_rng(0).dirichlet(np.ones(among), 100_000)
        assert variance_of_a_share(among) == pytest.approx(drawn.var(axis=0).mean(), rel=0.02)


def test_without_differences_the_average_effect_is_what_remains() -> None:
    made, tau = problem(0.0)
    noise = np.random.default_rng(1).standard_normal(len(tau))
    others = {"t": member("t", 5 * noise, 5.0), "x": member("x", -3 * noise, -3.0)}
    fitted = make_learner("ensemble", others).fit(made)
    assert fitted.model.constant == pytest.approx([0.3, 0.3], abs=0.06)


def test_a_fold_has_no_say_in_its_weights() -> None:
    """The effects of one fold's rows become noise: its own model stays as it was."""
    made, tau = problem(0.3)
    held = made.fold == 1
    noise = 0.1 * np.random.default_rng(2).standard_normal(len(tau))
    wild = np.where(held, 3 * noise, tau)

    def models(oof: FloatArray) -> list[FloatArray]:
        others = {"t": member("t", oof, 1.0), "x": member("x", noise, 0.0)}
        folds, full = make_learner("ensemble", others).cross_fit(made)
        return [m.constant for m in (*folds, full)]

    same = [np.array_equal(a, b) for a, b in zip(models(tau), models(wild), strict=True)]
    assert same == [False, True, False, False]


def test_a_learner_that_does_not_join_is_left_out() -> None:
    made, tau = problem(0.3)
    alone = {"t": member("t", tau, 1.0)}
    with_forest = {**alone, "causalml_forest": member("causalml_forest", tau, 50.0)}
    one, two = (make_learner("ensemble", others).fit(made) for others in (alone, with_forest))
    assert np.array_equal(one.model.constant, two.model.constant)


def test_only_those_near_the_least_loss_share_the_start() -> None:
    rng = np.random.default_rng(8)
    n = 2_000
    common = rng.exponential(size=n)  # paired: what all share does not blur the difference
    own = 0.05 * rng.standard_normal((n, 3))
    losses = common[:, None] + own + np.array([0.0, 0.0005, 0.01])
    one, each = np.ones(n), np.arange(n)

    def shares(losses: FloatArray, weight: FloatArray = one, *suited: int) -> list[float]:
        mask = np.isin(np.arange(losses.shape[1]), suited)
        return starting_shares(losses, mask, weight, each).tolist()

    assert shares(losses) == [0.5, 0.5, 0.0]
    assert shares(np.tile(common[:, None], 4)) == [0.25] * 4
    # One that suits the outcome starts alone, unless it is clearly worse.
    assert shares(losses, one, 1) == [0.0, 1.0, 0.0]
    assert shares(losses, one, 2) == [0.5, 0.5, 0.0]
    assert shares(losses, one, 1, 2) == [0.0, 1.0, 0.0]
    # Rows that weigh nearly nothing have no say.
    early = np.arange(n) < n // 2
    turned = np.column_stack([common + ~early, common + 0.01])
    assert shares(turned, np.where(early, 1.0, 1e-9)) == [1.0, 0.0]
    assert shares(turned) == [0.0, 1.0]
