"""A policy that fits in a few sentences: a shallow tree with one offer, or none, per leaf.

The tree maximises the mean of doubly robust scores of profit, each currency of cost charged at a
shadow price, over all trees of depth 2 whose splits are among the candidates (exact search; Athey &
Wager 2021; Zhou, Athey & Wager 2023). Depth 3 takes the first split of the best tree of depth 2 and
searches each side exactly again (the hybrid search of Sverdrup et al. 2020).

The search never goes back to the rows: for every pair of features the scores are summed over the
cells of their bins, and the value of every tree of depth 2 is read off these sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uplift.allocation import checked_scores, limit_of, of_arm
from uplift.data import BoolArray, Float32Array, FloatArray, IntArray
from uplift.errors import DesignError

# Values nearer than this share of all scores are a tie, which the earlier feature wins: sums in
# another order of the rows must not choose another tree.
_TIE = 1e-9
_PRICE_STEPS, _PRICE_WIDTH = 16, 0.01
_DIGITS = 3


@dataclass(frozen=True)
class Split:
    """A question about one feature; rows that answer yes go left.

    feature       position of the column
    value         x <= value, compared as float32; with `equals`, x == value. Infinite: is x known?
    missing_left  whether a missing x goes left
    """

    feature: int
    value: float
    equals: bool = False
    missing_left: bool = False

    def left(self, X: Float32Array) -> BoolArray:
        """(n,) rows that go left."""
        x, value = X[:, self.feature], np.float32(self.value)
        met = x == value if self.equals else x <= value
        out: BoolArray = np.where(np.isnan(x), self.missing_left, met)
        return out


@dataclass(frozen=True)
class Leaf:
    """Everyone here gets arm 1..K, or no offer (0)."""

    arm: int


@dataclass(frozen=True)
class Branch:
    split: Split
    left: Leaf | Branch
    right: Leaf | Branch


Node = Leaf | Branch
# The questions on the way to a leaf, each with its answer.
Path = tuple[tuple[Split, bool], ...]


@dataclass(frozen=True)
class PolicyTree:
    """The tree, and the shadow price that it was grown with (currency per currency of cost)."""

    root: Node
    price: float

    def leaves(self) -> list[tuple[Path, int]]:
        """The path and the arm of each leaf, from left to right."""
        found: list[tuple[Path, int]] = []

        def walk(node: Node, path: Path) -> None:
            if isinstance(node, Leaf):
                found.append((path, node.arm))
            else:
                walk(node.left, (*path, (node.split, True)))
                walk(node.right, (*path, (node.split, False)))

        walk(self.root, ())
        return found

    def leaf_of(self, X: Float32Array) -> IntArray:
        """(n,) number of each row's leaf, 0 for the leftmost."""
        out = np.zeros(len(X), dtype=np.int64)
        for number, (path, _) in enumerate(self.leaves()):
            here = np.ones(len(X), dtype=bool)
            for split, answer in path:
                here &= split.left(X) == answer
            out[here] = number
        return out

    def choice(self, X: Float32Array) -> IntArray:
        """(n,) arm of each row, 0 = no offer."""
        return np.array([arm for _, arm in self.leaves()], dtype=np.int64)[self.leaf_of(X)]


def fit_policy_tree(
    X: Float32Array,
    reward: FloatArray,
    cost: FloatArray,
    *,
    price: float = 0.0,
    budget: float | None = None,
    customers: FloatArray | None = None,
    categorical: Sequence[int] = (),
    columns: Sequence[int] | None = None,
    depth: int = 2,
    min_leaf: float = 1,
    candidates: int = 15,
) -> PolicyTree:
    """The tree of greatest sum of reward - price * cost over the rows.

    A leaf's arm is the one of greatest net sum there; none above 0: no offer. A split that adds
    nothing is not made.

    Args:
        X: (n, d) features, NaN where missing.
        reward: (n, K) doubly robust score of each arm less that of control, currency; 0 where the
            arm may not be offered, since such a row gets nothing.
        cost: (n, K) expected cost, currency; 0 where the arm may not be offered.
        price: shadow price, currency per currency of cost.
        budget: most that the tree may cost on these rows, currency. Where the tree at `price`
            costs more, the price is raised until it does not.
        customers: (n,) what each row counts towards `min_leaf`; default 1. With 1 / (rows of the
            row's customer), no leaf has fewer customers than `min_leaf`.
        categorical: positions of the columns whose numbers are names: they are split by equality.
        columns: positions of the columns that may be asked about, in the order that decides ties;
            default: all.
        depth: 0 to 3.
        candidates: most thresholds (quantiles, rounded to 3 digits so that they can be said) or
            levels (the most frequent) of a feature.

    Raises DesignError for shapes that do not fit, numbers that are not finite, a negative cost,
    price or budget, and a depth outside 0 to 3.
    """
    reward, cost = checked_scores(reward, cost)
    limit = limit_of(budget)
    X = np.asarray(X, dtype=np.float32)
    counted = np.ones(len(X)) if customers is None else np.asarray(customers, dtype=np.float64)
    if X.ndim != 2 or not len(X) == len(reward) == len(counted):
        raise DesignError(
            f"a policy tree needs equal rows: X {X.shape}, reward {reward.shape}, "
            f"customers {counted.shape}."
        )
    if not (math.isfinite(price) and price >= 0.0):
        raise DesignError(f"price: expected a finite number >= 0, found {price!r}.")
    if depth not in (0, 1, 2, 3):
        raise DesignError(f"depth: expected 0 to 3, found {depth!r}. Deeper trees say too much.")
    asked = range(X.shape[1]) if columns is None else columns
    bins = _bins(X, asked, set(categorical), candidates)
    search = _Search(bins, np.hstack([reward, cost, counted[:, None]]), depth, min_leaf)

    def grown(at: float) -> tuple[PolicyTree, bool]:
        tree = PolicyTree(search.tree(at), at)
        return tree, float(of_arm(cost, tree.choice(X)).sum()) <= limit * (1 + 1e-12)

    best, fits = grown(price)
    if fits:
        return best
    low, high = price, max(2 * price, 1.0)
    best, fits = grown(high)
    while not fits:
        low, high = high, 2 * high
        best, fits = grown(high)
    for _ in range(_PRICE_STEPS):
        if high - low <= _PRICE_WIDTH * high:
            break
        middle = (low + high) / 2
        tree, fits = grown(middle)
        if fits:
            best, high = tree, middle
        else:
            low = middle
    return best


@dataclass(frozen=True)
class _Bins:
    """code (F, n) bin of each row in each feature; splits: per feature its candidates; left
    (F, C, B): 1 where bin b goes left at candidate c, rows without a candidate all 0."""

    code: IntArray
    splits: list[list[Split]]
    left: FloatArray

    def rows(self, index: npt.NDArray[np.bool_]) -> _Bins:
        return _Bins(self.code[:, index], self.splits, self.left)


def _bins(X: Float32Array, asked: Sequence[int], categorical: set[int], most: int) -> _Bins:
    codes, splits, lefts = [], [], []
    for column in asked:
        x = X[:, column]
        missing = np.isnan(x)
        known = x[~missing]
        if column in categorical:
            levels, counts = np.unique(known, return_counts=True)
            marks = np.sort(levels[np.argsort(-counts, kind="stable")[:most]])
        else:
            marks = _thresholds(known, most)
        # Bins of a threshold: between the marks; of a category: its levels, the last for others.
        code = np.searchsorted(marks, x, side="left")
        if column in categorical and len(marks):
            code = np.where(marks[np.minimum(code, len(marks) - 1)] == x, code, len(marks))
        code[missing] = len(marks) + 1
        made, left = [], []
        for j, mark in enumerate(marks):
            inside = np.arange(len(marks) + 2)
            if column in categorical:
                made.append(Split(column, float(mark), equals=True))
                left.append(inside == j)
                continue
            for missing_left in (False, True) if missing.any() else (False,):
                made.append(Split(column, _short(float(mark)), missing_left=missing_left))
                left.append((inside <= j) | (missing_left & (inside == len(marks) + 1)))
        if missing.any() and len(known):
            made.append(Split(column, math.inf))
            left.append(np.arange(len(marks) + 2) <= len(marks))
        codes.append(code.astype(np.int64))
        splits.append(made)
        lefts.append(np.array(left, dtype=np.float64).reshape(len(made), len(marks) + 2))
    sizes = [a.shape for a in lefts] or [(0, 0)]
    padded = np.zeros((len(lefts), max(c for c, _ in sizes), max(b for _, b in sizes)))
    for f, left_of in enumerate(lefts):
        padded[f, : left_of.shape[0], : left_of.shape[1]] = left_of
    return _Bins(np.array(codes), splits, padded)


def _thresholds(known: Float32Array, most: int) -> Float32Array:
    """Rounded quantiles that have values on both sides, ascending, as float32."""
    if len(known) == 0:
        return known
    at = np.arange(1, most + 1) / (most + 1)
    quantiles = np.quantile(known, at, method="inverted_cdf")
    rounded = np.unique(np.array([_short(float(q)) for q in quantiles], dtype=np.float32))
    out: Float32Array = rounded[(rounded >= known.min()) & (rounded < known.max())]
    return out


def _short(value: float) -> float:
    """With as many digits as a sentence bears; whole numbers stay whole."""
    return float(f"{value:.{_DIGITS}g}")


class _Search:
    """Sums over the cells of each pair of features, of which every tree is read.

    sums (F, F, B, B, 2 K + 1): [f, g, b, c] over the rows in bin b of f and bin c of g: K
    rewards, K costs and what the rows count.
    """

    def __init__(self, bins: _Bins, weights: FloatArray, depth: int, min_leaf: float) -> None:
        self._bins, self._weights, self._depth = bins, weights, depth
        self._least = min_leaf * (1 - 1e-9)
        self._arms = (weights.shape[1] - 1) // 2
        self._total = weights.sum(axis=0)
        self._tie = _TIE * float(np.abs(weights[:, : self._arms]).sum())
        self._sums = _pair_sums(bins, weights) if depth > 0 and bins.left.size else None

    def tree(self, price: float) -> Node:
        """The best tree at this price."""
        if self._depth < 3:
            return self._best(price, self._depth)
        root = self._best(price, 2)
        if isinstance(root, Leaf):
            return root
        splits = self._bins.splits
        f = next(f for f, made in enumerate(splits) if root.split in made)
        goes = self._bins.left[f, splits[f].index(root.split)][self._bins.code[f]] > 0
        return Branch(root.split, self._side(goes, price), self._side(~goes, price))

    def _side(self, rows: BoolArray, price: float) -> Node:
        part = _Search(self._bins.rows(rows), self._weights[rows], 2, self._least)
        return part.tree(price)

    def _net(self, sums: FloatArray, price: float) -> FloatArray:
        """(..., K + 1) net sums of the arms, and last the count."""
        k = self._arms
        return np.concatenate(
            [sums[..., :k] - price * sums[..., k : 2 * k], sums[..., 2 * k :]], axis=-1
        )

    def _best(self, price: float, depth: int) -> Node:
        total = self._net(self._total, price)
        if self._sums is None or depth == 0:
            return _leaf(total)
        best = float(total[:-1].max(initial=0.0))
        left_of, splits = self._bins.left, self._bins.splits
        found = []
        for f in range(len(splits)):
            net = self._net(self._sums[f], price)  # (G, B of f, B of g, K + 1)
            yes = np.tensordot(left_of[f], net, axes=(1, 1))  # (C, G, B, K + 1)
            no = net.sum(axis=1) - yes
            sides = [_children(side, left_of, self._least, self._tie, depth) for side in (yes, no)]
            found.append((sides, yes, no, sides[0][0] + sides[1][0]))
        values = np.array([f[-1] for f in found])  # (F, C)
        if values.max() <= best + self._tie:
            return _leaf(total)
        chosen = int(np.flatnonzero(values.ravel() >= values.max() - self._tie)[0])
        f, c = divmod(chosen, values.shape[1])
        nodes: list[Node] = []
        for (_, below), side in zip(found[f][0], found[f][1:3], strict=True):
            cells = side[c]  # (G, B, K + 1)
            if below[c] < 0:
                nodes.append(_leaf(cells[0].sum(axis=0)))
                continue
            g, d = divmod(int(below[c]), left_of.shape[1])
            inner = left_of[g, d] @ cells[g]
            outer = cells[g].sum(axis=0) - inner
            nodes.append(Branch(splits[g][d], _leaf(inner), _leaf(outer)))
        return Branch(splits[f][c], nodes[0], nodes[1])


def _leaf(net: FloatArray) -> Leaf:
    arms = net[:-1]
    if len(arms) == 0 or arms.max() <= 0.0:
        return Leaf(0)
    return Leaf(int(arms.argmax()) + 1)


def _children(
    side: FloatArray, left_of: FloatArray, least: float, tie: float, depth: int
) -> tuple[FloatArray, IntArray]:
    """For one side of every split of a feature: (C,) its best value with at most one more split
    (-inf: too few customers), and (C,) which split that is (feature * C + candidate; -1: none).

    side (C, G, B, K + 1) sums over the bins of every other feature.
    """
    whole = side[:, 0].sum(axis=1)  # any feature's bins add up to the side
    alone = np.where(whole[:, -1] >= least, whole[:, :-1].max(axis=1, initial=0.0), -np.inf)
    none = np.full(len(alone), -1)
    if depth < 2:
        return alone, none
    inner = left_of @ side  # (C, G, C, K + 1)
    outer = whole[:, None, None] - inner
    value = inner[..., :-1].max(axis=-1, initial=0.0) + outer[..., :-1].max(axis=-1, initial=0.0)
    value[(inner[..., -1] < least) | (outer[..., -1] < least)] = -np.inf
    value = value.reshape(len(alone), -1)
    best = value.max(axis=1)
    first = (value >= (best - tie)[:, None]).argmax(axis=1)
    better = best > alone + tie
    return np.where(better, best, alone), np.where(better, first, none)


def _pair_sums(bins: _Bins, weights: FloatArray) -> FloatArray:
    features, size = len(bins.code), bins.left.shape[2]
    columns = np.ascontiguousarray(weights.T)
    out = np.empty((features, features, size, size, len(columns)))
    for f in range(features):
        first = bins.code[f] * size
        for g in range(f, features):
            cell = first + bins.code[g]
            for s, column in enumerate(columns):
                table = np.bincount(cell, column, minlength=size * size).reshape(size, size)
                out[f, g, :, :, s] = table
                out[g, f, :, :, s] = table.T
    return out
