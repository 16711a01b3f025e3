"""Policy trees against brute force, planted rules and what must not matter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from uplift.data import BoolArray, Float32Array, FloatArray
from uplift.errors import DesignError
from uplift.policy_tree import Branch, Leaf, PolicyTree, Split, fit_policy_tree


def drawn(seed: int, n: int = 60) -> tuple[Float32Array, FloatArray, FloatArray]:
    """Two counts and a category of few values, some missing; scores and costs of two arms."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 4, (n, 3)).astype(np.float32)
    X[rng.random(X.shape) < 0.15] = np.nan
    return X, rng.normal(size=(n, 2)), rng.random((n, 2))


def questions(X: Float32Array, categorical: set[int]) -> Iterator[BoolArray]:
    """Every question of the definition, answered row by row, without the module's help."""
    for column in range(X.shape[1]):
        x = X[:, column]
        known = sorted({float(v) for v in x if not np.isnan(v)})
        if column in categorical:
            for level in known:
                yield np.array([v == level for v in x])
        else:
            for at in known[:-1]:
                yield np.array([v <= at for v in x])
                yield np.array([bool(np.isnan(v) or v <= at) for v in x])
        yield np.array([not np.isnan(v) for v in x])


def best_by_trying(
    X: Float32Array, net: FloatArray, weight: FloatArray, least: float, depth: int
) -> float:
    """Greatest net sum of any tree, by trying them all."""

    def of(rows: BoolArray, left: int) -> float:
        if weight[rows].sum() < least - 1e-9:
            return -np.inf
        value: float = max(0.0, *net[rows].sum(axis=0).tolist())
        if left:
            for yes in asked:
                value = max(value, of(rows & yes, left - 1) + of(rows & ~yes, left - 1))
        return value

    asked = list(questions(X, {2}))
    return of(np.ones(len(X), dtype=bool), depth)


def net_of(tree: PolicyTree, X: Float32Array, net: FloatArray) -> float:
    choice = tree.choice(X)
    return float(sum(net[i, arm - 1] for i, arm in enumerate(choice) if arm))


@pytest.mark.parametrize("seed", range(12))
def test_no_tree_is_better(seed: int) -> None:
    X, gain, cost = drawn(seed)
    price, least = [0.0, 0.4][seed % 2], [1, 6][seed // 2 % 2]
    weight = np.where(np.arange(len(X)) % 3 == 0, 1.0, 0.5)
    for depth in (0, 1, 2):
        tree = fit_policy_tree(
            X,
            gain,
            cost,
            price=price,
            customers=weight,
            categorical=[2],
            depth=depth,
            min_leaf=least,
        )
        net = gain - price * cost
        assert net_of(tree, X, net) == pytest.approx(best_by_trying(X, net, weight, least, depth))
        leaf = tree.leaf_of(X)
        assert np.bincount(leaf, weight).min() >= least - 1e-9


def test_one_more_level_is_never_worse() -> None:
    for seed in range(5):
        X, gain, cost = drawn(seed, 200)
        values = [
            net_of(fit_policy_tree(X, gain, cost, categorical=[2], depth=depth), X, gain)
            for depth in range(4)
        ]
        assert values == sorted(values)
        assert values[3] > values[2]


def test_a_planted_rule_is_found() -> None:
    """Two arms, one for each kind of customer, noise twice the effects."""
    rng = np.random.default_rng(3)
    n = 20_000
    X = rng.normal(size=(n, 8)).astype(np.float32)
    X[:, 1] = rng.integers(0, 200, n)
    X[:, 6] = rng.integers(0, 3, n)
    recent, town = X[:, 1] <= 50, X[:, 6] == 2
    truth = np.stack([np.where(recent & town, 1.0, -0.5), np.where(~recent, 0.5, -1.0)], axis=1)
    gain = truth + 2 * rng.normal(size=(n, 2))
    tree = fit_policy_tree(X, gain, np.zeros((n, 2)), categorical=[6], min_leaf=500)
    expected = np.where(recent, np.where(town, 1, 0), 2)
    assert (tree.choice(X) == expected).mean() > 0.97
    asked = {split.feature for path, _ in tree.leaves() for split, _ in path}
    assert asked == {1, 6}


def test_order_of_rows_and_units_do_not_matter() -> None:
    X, gain, cost = drawn(4, 400)
    more: dict[str, Any] = {"categorical": [2], "min_leaf": 20}
    tree = fit_policy_tree(X, gain, cost, price=0.3, **more)
    order = np.random.default_rng(1).permutation(len(X))
    assert fit_policy_tree(X[order], gain[order], cost[order], price=0.3, **more) == tree
    cents = fit_policy_tree(X, 100 * gain, 100 * cost, price=0.3, **more)
    assert cents == tree


def test_equal_features_are_a_tie_for_the_first() -> None:
    X, gain, cost = drawn(5, 300)
    twice = np.hstack([X, X])
    tree = fit_policy_tree(twice, gain, cost, categorical=[2, 5], depth=2)
    assert {s.feature for path, _ in tree.leaves() for s, _ in path} <= {0, 1, 2}
    other = fit_policy_tree(
        twice, gain, cost, categorical=[2, 5], depth=2, columns=[3, 4, 5, 0, 1, 2]
    )
    assert {s.feature for path, _ in other.leaves() for s, _ in path} <= {3, 4, 5}


def test_a_budget_is_kept_and_little_of_it_is_left_to_a_lower_price() -> None:
    X, gain, cost = drawn(6, 500)
    gain += 0.5
    free = fit_policy_tree(X, gain, cost, categorical=[2])
    spent = cost[np.arange(len(X)), free.choice(X) - 1][free.choice(X) > 0].sum()
    assert free.price == 0.0
    assert fit_policy_tree(X, gain, cost, categorical=[2], budget=float(spent)) == free
    bound = fit_policy_tree(X, gain, cost, categorical=[2], budget=float(spent) / 2)
    choice = bound.choice(X)
    assert cost[np.arange(len(X)), choice - 1][choice > 0].sum() <= spent / 2
    assert bound.price > 0
    assert (choice > 0).any()


def test_nothing_that_pays_sends_nothing() -> None:
    X, gain, cost = drawn(7)
    assert fit_policy_tree(X, -np.abs(gain), cost).root == Leaf(0)
    dear = fit_policy_tree(X, gain, cost + 1, price=1e6)
    assert dear.root == Leaf(0)
    no_arm = fit_policy_tree(X, gain[:, :0], cost[:, :0])
    assert no_arm.root == Leaf(0)
    assert fit_policy_tree(X[:, :0], np.abs(gain), cost).root == Leaf(
        1 + int(np.abs(gain).sum(axis=0).argmax())
    )


def test_where_missing_values_go() -> None:
    X = np.array([[1], [2], [3], [np.nan]], dtype=np.float32)
    assert Split(0, 2.0).left(X).tolist() == [True, True, False, False]
    assert Split(0, 2.0, missing_left=True).left(X).tolist() == [True, True, False, True]
    assert Split(0, 2.0, equals=True).left(X).tolist() == [False, True, False, False]
    assert Split(0, np.inf).left(X).tolist() == [True, True, True, False]
    # a decimal is compared as the float32 that the features are kept in
    assert Split(0, 0.1).left(np.array([[0.1]], dtype=np.float32)).all()
    tree = PolicyTree(Branch(Split(0, 2.0), Leaf(1), Leaf(0)), 0.0)
    assert tree.choice(X).tolist() == [1, 1, 0, 0]
    assert tree.leaf_of(X).tolist() == [0, 0, 1, 1]


def test_thresholds_can_be_said() -> None:
    rng = np.random.default_rng(8)
    X = (1000 * rng.lognormal(size=(5000, 1))).astype(np.float32)
    gain = np.where(X > 1700, 1.0, -1.0).astype(np.float64)
    tree = fit_policy_tree(X, gain, np.zeros((5000, 1)), depth=1)
    assert isinstance(tree.root, Branch)
    assert tree.root.split.value == float(f"{tree.root.split.value:.3g}")


def test_wrong_inputs_are_named() -> None:
    X, gain, cost = drawn(9)
    with pytest.raises(DesignError, match="equal rows"):
        fit_policy_tree(X[1:], gain, cost)
    with pytest.raises(DesignError, match="cost: expected numbers >= 0"):
        fit_policy_tree(X, gain, -cost)
    with pytest.raises(DesignError, match="price: expected a finite number"):
        fit_policy_tree(X, gain, cost, price=-1)
    with pytest.raises(DesignError, match="depth: expected 0 to 3, found 4"):
        fit_policy_tree(X, gain, cost, depth=4)
    gain[3, 1] = np.nan
    with pytest.raises(DesignError, match="reward: expected finite"):
        fit_policy_tree(X, gain, cost)


def test_the_cost_of_the_search_stays_low() -> None:
    """Ratio within one run: 20,000 rows, 12 features, 3 arms, against a plain pass over what the
    search has to sum (pairs of features times numbers per row)."""
    rng = np.random.default_rng(10)
    n, d, arms = 20_000, 12, 3
    X = rng.normal(size=(n, d)).astype(np.float32)
    gain, cost = rng.normal(size=(n, arms)), rng.random((n, arms))
    started = time.process_time()
    cell, column = rng.integers(0, 324, n), np.ascontiguousarray(gain[:, 0])
    for _ in range(d * (d + 1) // 2 * (2 * arms + 1)):
        np.bincount(cell, column, minlength=324)
    plain = time.process_time() - started
    started = time.process_time()
    fit_policy_tree(X, gain, cost, min_leaf=200)
    assert time.process_time() - started < 8 * plain + 0.5
