"""What every registered learner owes. A learner that is added is exercised without another edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contracts.learner_cases import (
    EXERCISED,
    FOLDS,
    NAMES,
    OUTCOMES,
    SETTINGS,
    UNIT,
    every_learner,
    every_outcome,
    experiment,
    fitted,
    fresh,
    learns,
    problem,
)
from tests.truth.worlds import draw_arms, problem_of, training_set
from uplift import nuisances
from uplift.boosting import CrossFit
from uplift.contributions import Explainer
from uplift.effects import EffectModel
from uplift.errors import DesignError
from uplift.learners import LEARNERS, causalml_forest, make_learner
from uplift.learners import base as base_module
from uplift.nuisances import doubly_robust, realised

pytestmark = pytest.mark.usefixtures("small_forests")


@every_learner
def test_declares_what_it_is(name: str) -> None:
    cls = LEARNERS[name]
    assert cls.name == name
    assert cls.title
    assert cls.nuisances <= {"mu", "assignment"}
    assert cls.outcomes
    assert cls.outcomes <= set(OUTCOMES)
    assert cls.assumes in (None, "proportional")
    assert cls.cannot <= {"monotone"}
    assert isinstance(make_learner(name), cls)


@every_outcome
@every_learner
def test_effects_of_every_arm(name: str, outcome: str) -> None:
    learns(name, outcome)
    made, data = fitted(name, outcome), problem(outcome).data
    assert made.name == name
    assert made.oof.shape == (len(data), 2)
    assert made.model.predict(fresh(outcome), 1).shape == (40, 2)
    assert np.isfinite(made.oof).all()
    assert np.isfinite(made.model.predict(fresh(outcome), 1)).all()
    assert made.model.predict(data.X[:0], 1).shape == (0, 2)


@every_outcome
@every_learner
def test_finds_who_is_changed(name: str, outcome: str) -> None:
    """Arm 1 changes who has a high `c`, arm 2 the upper levels of the category `d`; a learner that
    assumes effects in proportion to the baseline gets such effects, which follow `a`."""
    learns(name, outcome)
    effect = LEARNERS[name].assumes or "varied"
    data, oof = problem(outcome, effect).data, fitted(name, outcome, effect).oof
    size = UNIT[outcome] * np.ones(2)
    groups = [(data.X[:, 2] > 0, data.X[:, 2]), (data.X[:, 3] >= 2, data.X[:, 3])]
    if effect == "proportional":
        size *= [0.5, 0.25] if outcome == "binary" else [1.0, 0.5]
        groups = [(data.X[:, 0] > 0, data.X[:, 0])] * 2
    # The S-learner shrinks; a reversed sign or a swapped arm is far away all the same.
    least = 0.05 if name == "s" else 0.35
    for k, (high, trait) in enumerate(groups):
        low = ~high & ~np.isnan(trait)
        gap = oof[high, k].mean() - oof[low, k].mean()
        assert least * size[k] < gap < 1.25 * size[k]


@every_outcome
@every_learner
def test_the_same_seed_gives_the_same_model(name: str, outcome: str) -> None:
    learns(name, outcome)
    again = make_learner(name).fit(problem_of(experiment(outcome), SETTINGS, FOLDS))
    first = fitted(name, outcome)
    assert np.array_equal(again.oof, first.oof)
    X = fresh(outcome)
    assert np.array_equal(again.model.predict(X, 1), first.model.predict(X, 1))


@every_outcome
@every_learner
def test_saved_and_loaded_predicts_the_same_bits(name: str, outcome: str, tmp_path: Path) -> None:
    learns(name, outcome)
    model, X = fitted(name, outcome).model, fresh(outcome)
    spec, files = model.to_files("effects")
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    read = {file: (tmp_path / file).read_bytes() for file in files}
    loaded = EffectModel.from_files(spec, read)
    assert np.array_equal(loaded.predict(X, 1), model.predict(X, 1))
    assert loaded.to_files("effects") == (spec, files)


@every_learner
@every_outcome
def test_its_effects_are_explained(name: str, outcome: str) -> None:
    """Contributions add up to the effect; the first arm's depends on c alone, the second's on d."""
    learns(name, outcome)
    model = fitted(name, outcome).model
    X = fresh(outcome)
    effects = model.predict(X, threads=1)
    explainer = Explainer(model, experiment(outcome).X)
    for k, feature in ((1, 2), (2, 3)):
        values, base = explainer.contributions(X, np.full(len(X), k))
        assert values.sum(axis=1) + base == pytest.approx(effects[:, k - 1], abs=1e-6)
        # by its definition the proportional learner looks at the baseline, which a decides
        if name != "proportional":
            assert np.abs(values).mean(axis=0).argmax() == feature


@every_outcome
@every_learner
def test_a_row_scores_the_same_in_any_company(name: str, outcome: str) -> None:
    learns(name, outcome)
    model, X = fitted(name, outcome).model, fresh(outcome)
    together = model.predict(X, 1)
    alone = np.concatenate([model.predict(X[[i]], 1) for i in range(len(X))])
    assert np.array_equal(alone, together)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(model.predict(X[order], 1), together[order])


@every_outcome
@every_learner
def test_no_effect_gives_a_mean_effect_near_zero(name: str, outcome: str) -> None:
    learns(name, outcome)
    mean = fitted(name, outcome, "zero").oof.mean(axis=0)
    assert np.abs(mean).max() < 3.5 * standard_error(outcome)


@every_outcome
@every_learner
def test_a_constant_effect_is_recovered(name: str, outcome: str) -> None:
    learns(name, outcome)
    truth = np.array([1.0, 0.5]) * UNIT[outcome]
    found = fitted(name, outcome, "constant").oof
    # S shrinks towards 0; the others are within the noise of an average effect.
    shrinks = 0.35 * truth if name == "s" else 0.0
    off = found.mean(axis=0) - truth
    assert (off < 3.5 * standard_error(outcome)).all()
    assert (off > -3.5 * standard_error(outcome) - shrinks).all()
    spread = np.sqrt(np.mean((found - truth) ** 2))
    # A few trees of small leaves are noisy; only their mean is worth something here.
    assert spread < (1.0 if name == "causalml_forest" else 0.6) * truth[0]


def standard_error(outcome: str) -> float:
    """Of an arm's average effect with about 400 and 600 rows of noise; both outcomes' noise is
    known: at most .5 for a conversion, 1 in money."""
    return (0.5 if outcome == "binary" else 1.0) * float(np.sqrt(1 / 400 + 1 / 600))


@every_learner
def test_assignment_that_follows_the_outcome_does_not_mislead(name: str) -> None:
    """Arm 1 goes to customers who buy little: the plain difference of means says it harms, and it
    changes nothing. The probabilities are known; the trait that they follow is a feature."""
    learns(name, "money")
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2000, 2)).astype(np.float32)
    high = np.where(x[:, 0] > 0, 0.2, 0.8)
    assignment = np.column_stack([1 - high, high])
    arm = draw_arms(assignment, rng)
    y = 3.0 * (x[:, 0] > 0) + rng.standard_normal(2000)
    naive = y[arm == 1].mean() - y[arm == 0].mean()
    made = make_learner(name).fit(problem_of(training_set(x, arm, y, assignment), SETTINGS, FOLDS))
    assert naive < -1.5
    # Adjusted: within a few standard errors (1 / sqrt(2000 * .2 * .8) = .056) of nothing.
    assert np.abs(made.oof.mean()) < 0.25


@every_learner
def test_a_model_never_sees_the_customers_of_its_fold(name: str) -> None:
    """Outcomes of the first fold change by a hair: the model that left it out stays the same to
    the last bit, the others and the served one do not. (So small a hair that the number of trees,
    which the other folds' models choose, is the same.)"""
    learns(name, "money")
    clean = problem("money")
    target = clean.target.copy()
    held = clean.fold == 0
    target[held] += 1e-5 * np.random.default_rng(1).standard_normal(held.sum())
    if LEARNERS[name].combines:
        pytest.skip(f"{name} weighs the effects that others found; its own test holds those fixed")
    refit = problem_of(replace(clean.data, y=target), SETTINGS, FOLDS)
    assert np.array_equal(refit.fold, clean.fold)
    shares = realised(clean.data.assignment, clean.data.arm)
    gamma = doubly_robust(clean.mu, shares, clean.data.arm, target)
    moved = replace(refit, mu=clean.mu, gamma=gamma)
    if name != "t":  # which is nothing but these means
        moved = replace(moved, arm_means=clean.arm_means, full_means=clean.full_means)
    before, full_before = make_learner(name).cross_fit(clean)
    after, full_after = make_learner(name).cross_fit(moved)
    X = clean.data.X
    same = [
        np.array_equal(a.predict(X, 1), b.predict(X, 1)) for a, b in zip(before, after, strict=True)
    ]
    assert same == [True, False, False]
    assert not np.array_equal(full_before.predict(X, 1), full_after.predict(X, 1))


@every_learner
def test_out_of_fold_effects_come_from_the_model_of_the_fold(name: str) -> None:
    learns(name, "money")
    base = problem("money")
    for cluster in (base.data.cluster[:50], base.data.cluster[-50:]):
        for code in cluster:
            assert len(set(base.fold[base.data.cluster == code])) == 1
    models, _ = make_learner(name).cross_fit(base)
    assert len(models) == FOLDS
    oof = fitted(name, "money").oof
    for f, model in enumerate(models):
        held = base.fold == f
        assert np.array_equal(oof[held], model.predict(base.data.X[held], 1))


@every_learner
def test_an_arm_without_exposures_is_refused(name: str) -> None:
    data = experiment("money")
    data = data.rows(data.arm != 2)
    problem_without = problem_of(data, SETTINGS, FOLDS)
    with pytest.raises(DesignError, match=r"no exposure has the arms c2: .*Remove them"):
        make_learner(name).fit(problem_without)


@pytest.mark.parametrize(("outcome", "other"), [("binary", "money"), ("money", "binary")])
@every_learner
def test_an_outcome_that_is_not_declared_is_refused(
    name: str, outcome: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LEARNERS[name], "outcomes", frozenset({other}))
    with pytest.raises(
        DesignError, match=f"learner {name} learns {other} outcomes, found a {outcome} one"
    ):
        make_learner(name).fit(problem(outcome))


@every_learner
def test_arms_that_only_some_customers_could_get(name: str) -> None:
    """Ineligible rows (probability 0, of an arm or of control) teach nothing and break nothing."""
    learns(name, "money")
    data = experiment("money")
    rng = np.random.default_rng(9)
    never = np.nan_to_num(data.X[:, 0]) < -1
    certain = np.nan_to_num(data.X[:, 0]) > 1.3
    assignment = data.assignment.copy()
    assignment[never] = [0.5, 0.5, 0.0]
    assignment[certain] = [0.0, 0.5, 0.5]
    arm = draw_arms(assignment, rng)
    y = rng.standard_normal(len(arm)) + 2.0 * (arm == 1) + 1.0 * (arm == 2)
    # Outcomes of rows without a chance of control must not enter the effects through 1 / 0.
    made = make_learner(name).fit(
        problem_of(replace(data, assignment=assignment, arm=arm, y=y, reward=y), SETTINGS, FOLDS)
    )
    assert np.isfinite(made.oof).all()
    shrinks = 0.7 if name == "s" else 0.25
    assert -shrinks < made.oof[:, 0].mean() - 2 < 0.25
    assert -shrinks < made.oof[:, 1].mean() - 1 < 0.25


def test_an_unknown_learner_lists_the_known_ones() -> None:
    known = ", ".join(NAMES)
    with pytest.raises(DesignError, match=rf"unknown learner 'u', expected {known}"):
        make_learner("u")


def test_the_x_learner_gives_the_stubs_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tau0 = 1 and tau1 = 0 the effect of arm k is e'_k = e_k / (e_k + e_0), exactly."""
    rng = np.random.default_rng(1)
    n, shares = 3000, np.array([0.125, 0.125, 0.375, 0.375])
    assignment = np.tile(shares, (n, 1))
    arm = draw_arms(assignment, rng)
    X = rng.standard_normal((n, 2)).astype(np.float32)
    base = problem_of(training_set(X, arm, rng.standard_normal(n), assignment), SETTINGS, FOLDS)

    def stub(_binned: object, rows: np.ndarray, *_args: object, **_settings: object) -> CrossFit:
        codes = set(base.data.arm[rows])
        assert len(codes) == 1, "one side of the experiment at a time"
        model = EffectModel(np.array([1.0 if codes == {0} else 0.0]))
        return CrossFit((model,) * FOLDS, model, 0)

    monkeypatch.setattr(nuisances, "cross_fit", stub)
    made = make_learner("x").fit(base)
    expected = np.array([0.5, 0.75, 0.75])  # numbers whose means are exact in binary
    assert np.array_equal(made.model.constant, expected)
    assert np.array_equal(made.oof, np.tile(expected, (n, 1)))


def test_the_x_learners_targets_know_nothing_of_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of a fold leave the targets of its model as they were, to the last bit. In the
    out-of-fold means of the other rows they would have a part."""
    seen: list[np.ndarray] = []

    def kept(
        _binned: object, rows: np.ndarray, target: np.ndarray, *_: object, **__: object
    ) -> Any:
        seen.append(target[:, clean.fold[rows] != 0])
        return CrossFit((model,) * FOLDS, model, 0)

    model = EffectModel(np.zeros(1))
    clean = problem("money")
    changed = clean.target + (clean.fold == 0) * 1e-3
    moved = problem_of(replace(clean.data, y=changed), SETTINGS, FOLDS)
    monkeypatch.setattr(nuisances, "cross_fit", kept)
    for made in (clean, moved):
        make_learner("x").fit(made)
    for before, after in zip(seen[:4], seen[4:], strict=True):
        assert before.shape[0] == FOLDS + 1
        assert np.array_equal(before[0], after[0])
        assert not np.array_equal(before[1], after[1])
        assert not np.array_equal(before[FOLDS], after[FOLDS])


def test_the_forest_of_conversions_learns_nothing_about_amounts() -> None:
    """Why money goes to another forest: whoever buys is 1 to the classifier, however much."""
    rng = np.random.default_rng(2)
    n = 1500
    X = rng.standard_normal((n, 2)).astype(np.float32)
    arm = rng.integers(0, 2, n)
    amount = 10.0 + 5.0 * arm * (X[:, 0] > 0) + rng.random(n)

    def effects(binary: bool) -> np.ndarray:
        arrays = causalml_forest._arrays(causalml_forest._grow(X, arm, amount, binary, 1, 3))
        term = causalml_forest.ForestTerm(**arrays, output=0)
        return term.value(X)

    assert np.array_equal(effects(binary=True), np.zeros(n))
    money = effects(binary=False)
    assert money[X[:, 0] > 0.5].mean() > 4.0
    assert abs(money[X[:, 0] < -0.5].mean()) < 1.0


@every_outcome
def test_a_forest_grows_on_no_more_rows_than_its_cap(
    outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow, sizes = causalml_forest._grow, []

    def counted(X: np.ndarray, *rest: Any) -> list[Any]:
        sizes.append(len(X))
        return grow(X, *rest)

    monkeypatch.setattr(causalml_forest, "ROWS", 500)
    monkeypatch.setattr(causalml_forest, "_grow", counted)
    make_learner("causalml_forest").fit(problem(outcome))
    assert sizes == [500] * (FOLDS + 1)


@pytest.mark.parametrize("binary", [True, False], ids=["classifier", "regressor"])
def test_the_forests_arrays_predict_what_causalml_predicts(
    binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from causalml.inference.tree import CausalRandomForestRegressor, UpliftRandomForestClassifier

    cls = UpliftRandomForestClassifier if binary else CausalRandomForestRegressor
    grown = []
    fit = cls.fit

    def kept(self: object, *args: object, **kwargs: object) -> object:
        grown.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(cls, "fit", kept)
    rng = np.random.default_rng(4)
    n = 1500
    X = rng.standard_normal((n, 3)).astype(np.float32)
    arm = rng.integers(0, 3, n)
    lift = 0.3 * (arm == 1) * (X[:, 0] > 0) + 0.2 * (arm == 2) * (X[:, 1] > 0)
    y = (rng.random(n) < 0.3 + lift).astype(float) if binary else lift + rng.random(n)
    arrays = causalml_forest._arrays(causalml_forest._grow(X, arm, y, binary, 1, 5))
    ours = np.column_stack(
        [causalml_forest.ForestTerm(**arrays, output=k).value(X) for k in range(2)]
    )
    theirs = np.asarray(grown[0].predict(X))
    assert theirs.shape == ours.shape
    assert np.ptp(theirs) > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_every_learner_was_exercised_with_every_outcome_it_declares() -> None:
    """Stands last. A learner that registers is picked up by the parametrisation above."""
    files = {p.stem for p in Path(base_module.__file__).parent.glob("*.py")} - {"__init__", "base"}
    registered = {cls.__module__.rsplit(".", 1)[1] for cls in LEARNERS.values()}
    assert files == registered, "a learner's file registers no learner"
    for name in NAMES:
        for outcome in LEARNERS[name].outcomes:
            fitted(name, outcome)
    assert {(n, o) for n in NAMES for o in LEARNERS[n].outcomes} <= EXERCISED
