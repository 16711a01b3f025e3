"""Cross-fitting: who sees whom, and how many trees held-out rows ask for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import lightgbm as lgb
import numpy as np
import pytest

from uplift.boosting import Binned, Fold, Settings, cross_fit
from uplift.effects import EffectModel

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=10, threads=1)


def sample(n: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, a signal with noise, folds."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)).astype(np.float32)
    return X, 2 * np.sin(2 * X[:, 0]) + rng.standard_normal(n), rng.integers(0, 4, n)


def test_a_subset_of_the_shared_bins_learns_what_lightgbm_learns_of_the_rows_alone() -> None:
    """Order of the rows given doesn't matter: target and weight stay with their row."""
    rng = np.random.default_rng(1)
    X = rng.integers(0, 30, (900, 3)).astype(np.float32)  # few values: the bins are the values
    y, w = X[:, 0] + rng.standard_normal(900), rng.uniform(0.5, 2.0, 900)
    rows = rng.permutation(900)[:600]
    settings = replace(SETTINGS, rounds=20, feature_fraction=1.0)
    term = Binned(X, [], 1).fit(rows, y[rows], settings, weight=w[rows])
    order = np.sort(rows)
    params = {"verbosity": -1, "min_data_in_bin": 3, "feature_pre_filter": False}
    part = lgb.Dataset(X[order], y[order], weight=w[order], params=params)
    direct = lgb.train(settings.params("regression"), part, num_boost_round=20)
    np.testing.assert_allclose(term.value(X, 1), direct.predict(X, num_threads=1), rtol=1e-12)


def test_the_loss_curve_is_the_sum_over_the_held_out_rows() -> None:
    X, y, fold = sample()
    w = np.random.default_rng(2).uniform(0.2, 3.0, len(X))
    folds = [Fold(a, y[a], None, b, y[b], w[b]) for a, b in map(partial(split, fold), range(2))]
    terms, curves = Binned(X, [], 1).fit_beside(folds, SETTINGS)
    curve = curves.sum(axis=1)
    for rounds in (1, 10, len(curve)):
        losses = []
        for part, term in zip(folds, terms, strict=True):
            raw = term.booster.predict(X[part.held], num_iteration=rounds, num_threads=1)
            losses.append(np.sum(w[part.held] * (raw - y[part.held]) ** 2))
        assert curve[rounds - 1] == pytest.approx(np.sum(losses))


def split(fold: np.ndarray, f: int) -> tuple[np.ndarray, np.ndarray]:
    return np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def test_boosters_side_by_side_are_those_that_grow_alone() -> None:
    X, y, fold = sample()
    folds = [Fold(a, y[a], None, b, y[b], None) for a, b in map(partial(split, fold), range(4))]
    data = Binned(X, [], 1)
    terms, curve = data.fit_beside(folds, SETTINGS)
    alone = data.fit(folds[2].rows, folds[2].target, replace(SETTINGS, rounds=len(curve)))
    assert np.array_equal(terms[2].value(X, 1), alone.value(X, 1))


def test_trees_that_no_longer_pay_are_not_grown() -> None:
    """Where there is nothing to learn the patience is what is spent, and not all the rounds."""
    X, _, fold = sample()
    noise = np.random.default_rng(8).standard_normal(len(X))
    folds = [
        Fold(a, noise[a], None, b, noise[b], None) for a, b in map(partial(split, fold), range(4))
    ]
    terms, curves = Binned(X, [], 1).fit_beside(folds, SETTINGS)
    curve = curves.sum(axis=1)
    assert len(curve) == 1 + int(np.argmin(curve)) + SETTINGS.rounds // 5
    assert len(curve) < SETTINGS.rounds
    assert {term.booster.num_trees() for term in terms} == {len(curve)}


def test_the_number_of_trees_minimises_the_loss_over_the_folds() -> None:
    """That of a fold's own model, the loss over the other folds: its own rows have no say."""
    X, y, fold = sample(200)
    data, rows = Binned(X, [], 1), np.arange(len(X))
    quick = replace(SETTINGS, learning_rate=0.3)
    made = cross_fit(data, rows, y, fold, quick)
    losses = np.zeros((quick.rounds, 4))
    for f in range(4):
        train, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        term = data.fit(train, y[train], quick)
        for r in range(quick.rounds):
            raw = term.booster.predict(X[held], num_iteration=r + 1, num_threads=1)
            losses[r, f] = np.sum((raw - y[held]) ** 2)
    assert trees(made.full) == made.rounds == 1 + int(np.argmin(losses.sum(axis=1)))
    assert 0 < made.rounds < quick.rounds
    others = [1 + int(np.argmin(np.delete(losses, f, axis=1).sum(axis=1))) for f in range(4)]
    assert [trees(model) for model in made.models] == others
    assert len(set(others)) > 1


def trees(model: EffectModel) -> int:
    booster: lgb.Booster = model.terms[0][0].booster  # type: ignore[attr-defined]
    return booster.num_trees()


def test_the_outcomes_of_a_fold_do_not_choose_its_trees() -> None:
    """Held-out rows that ask for no trees at all: the fold's own model keeps them."""
    X, y, fold = sample()
    data, rows = Binned(X, [], 1), np.arange(len(X))
    quick = replace(SETTINGS, learning_rate=0.3, feature_fraction=1.0)
    judge = np.where(fold == 1, -20 * y, y)
    made = cross_fit(data, rows, y, fold, quick, valid=(rows, judge, None))
    assert made.rounds == 0
    assert [len(model.terms) for model in made.models] == [0, 1, 0, 0]


def test_rows_are_predicted_by_the_model_that_did_not_see_them() -> None:
    X, y, fold = sample()
    made = cross_fit(Binned(X, [], 1), np.arange(len(X)), y, fold, SETTINGS)
    out = made.out_of_fold(X, fold, 1)
    for f in range(4):
        assert np.array_equal(out[fold == f], made.models[f].predict(X[fold == f], 1)[:, 0])


def test_noise_is_not_remembered_out_of_fold() -> None:
    """The error of an honest prediction knows nothing of the row's own noise."""
    rng = np.random.default_rng(3)
    X, _, fold = sample(2000)
    noise = rng.standard_normal(2000)
    signal = 2 * np.sin(2 * X[:, 0].astype(float))
    wild = replace(SETTINGS, num_leaves=31, min_child_samples=2, learning_rate=0.3)
    made = cross_fit(Binned(X, [], 1), np.arange(2000), signal + noise, fold, wild)
    honest = np.corrcoef(made.out_of_fold(X, fold, 1) - signal, noise)[0, 1]
    in_sample = np.corrcoef(made.full.predict(X, 1)[:, 0] - signal, noise)[0, 1]
    assert abs(honest) < 3.3 / np.sqrt(2000)
    assert in_sample > 0.3


def test_nothing_to_learn_gives_the_means() -> None:
    X, y, fold = sample()
    w = np.random.default_rng(6).uniform(0.5, 2.0, len(X))
    rows = np.arange(len(X))
    judges = (rows, 2 * np.average(y, weights=w) - y, w)  # whatever is learned is wrong for them
    made = cross_fit(Binned(X, [], 1), rows, y, fold, SETTINGS, weight=w, valid=judges)
    assert made.rounds == 0
    assert made.full.predict(X[:2]).ravel() == pytest.approx([np.average(y, weights=w)] * 2)
    for f, model in enumerate(made.models):
        out = fold != f
        assert model.constant[0] == pytest.approx(np.average(y[out], weights=w[out]))


@pytest.mark.parametrize("binary", [False, True])
def test_outcomes_that_never_vary(binary: bool) -> None:
    X, _, fold = sample(200)
    made = cross_fit(Binned(X, [], 1), np.arange(200), np.ones(200), fold, SETTINGS, binary=binary)
    assert made.rounds == 0
    assert made.full.predict(X[:1]).item() == 1.0


def test_a_rare_outcome_gives_the_rate_or_its_log_odds() -> None:
    X, _, fold = sample(400)
    y = np.zeros(400)
    y[:3] = 1
    data, rows = Binned(X, [], 1), np.arange(400)
    rate = cross_fit(data, rows, y, fold, SETTINGS, binary=True)
    assert rate.full.predict(X[:1]).item() == pytest.approx(3 / 400)
    odds = cross_fit(data, rows, y, fold, SETTINGS, binary=True, link="identity")
    assert odds.full.predict(X[:1]).item() == pytest.approx(np.log(3 / 397))


def test_no_rows_at_all() -> None:
    X, _, fold = sample(50)
    made = cross_fit(Binned(X, [], 1), np.zeros(0, dtype=np.int64), np.zeros(0), fold, SETTINGS)
    assert (made.rounds, made.full.predict(X[:1]).item()) == (0, 0.0)


def test_other_rows_may_judge_the_trees() -> None:
    """Judges who see the opposite of what was learned ask for no trees."""
    X, y, fold = sample()
    data, rows = Binned(X, [], 1), np.arange(len(X))
    learned = y - y.mean()
    made = cross_fit(data, rows, learned, fold, SETTINGS, valid=(rows, -learned, None))
    assert made.rounds == 0
    assert cross_fit(data, rows, learned, fold, SETTINGS, valid=(rows, learned, None)).rounds > 5


def test_categories_are_split_as_sets() -> None:
    """Levels 0, 2, 4, ... against 1, 3, 5, ...: one split of a category, many of a number."""
    rng = np.random.default_rng(7)
    X = rng.integers(0, 12, (1500, 1)).astype(np.float32)
    y = (X[:, 0] % 2).astype(float)
    stump = replace(SETTINGS, rounds=1, learning_rate=1.0, num_leaves=2, feature_fraction=1.0)
    stump = replace(stump, lambda_l2=0.0, extra={"cat_smooth": 0.0, "cat_l2": 0.0})
    rows = np.arange(1500)
    as_set = Binned(X, [0], 1).fit(rows, y, stump)
    as_number = Binned(X, [], 1).fit(rows, y, stump)
    assert as_set.value(X, 1) == pytest.approx(y, abs=1e-6)
    assert np.abs(as_number.value(X, 1) - y).mean() > 0.3


def test_the_least_leaf_of_effects_grows_with_the_features_above_twenty() -> None:
    few = replace(SETTINGS, min_child_samples=100)
    assert few.for_effects(3) == few.for_effects(20) == few
    assert few.for_effects(60) == replace(few, min_child_samples=300)
