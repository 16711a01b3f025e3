"""Leaves in words: what a sentence says is what the tree does."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.data import Schema
from uplift.policy_tree import Branch, Leaf, PolicyTree, Split
from uplift.scores import ScoreMatrix, clustered_mean
from uplift.segments import SEND_NONE, segments, words

SCHEMA = Schema(
    ("recency_days", "discount_rate_365d", "tier"), {"tier": ("lost", "new", "regular")}
)
KNOWN, UNKNOWN = Split(0, np.inf), Split(0, 45.0, missing_left=True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([], []),
        ([(Split(0, 45.0), True)], ["recency_days at most 45"]),
        ([(UNKNOWN, True)], ["recency_days at most 45 or unknown"]),
        ([(UNKNOWN, False)], ["recency_days above 45"]),
        ([(Split(0, 45.0), False)], ["recency_days above 45 or unknown"]),
        (
            [(Split(0, 45.0), False), (Split(0, 90.0), True)],
            ["recency_days above 45 and at most 90"],
        ),
        ([(Split(0, 90.0), True), (Split(0, 45.0), True)], ["recency_days at most 45"]),
        ([(KNOWN, True)], ["recency_days known"]),
        ([(KNOWN, False)], ["recency_days unknown"]),
        ([(Split(0, 45.0), False), (KNOWN, True)], ["recency_days above 45"]),
        # a feature that is never missing needs no word on it
        ([(Split(1, 0.125), False)], ["discount_rate_365d above 0.125"]),
        ([(Split(2, 1.0, equals=True), True)], ["tier new"]),
        ([(Split(2, 1.0, equals=True), False)], ["tier other than new"]),
        (
            [(Split(2, 1.0, equals=True), False), (Split(2, 0.0, equals=True), False)],
            ["tier other than new and lost"],
        ),
        (
            [(Split(1, 1230.0), False), (Split(0, 45.0), True)],
            ["discount_rate_365d above 1,230", "recency_days at most 45"],
        ),
    ],
)
def test_words(path: list[tuple[Split, bool]], said: list[str]) -> None:
    assert words(tuple(path), SCHEMA, {0, 2}) == said


def test_segments_are_measured_on_their_own_rows() -> None:
    """Four waves of 500 customers; the second coupon can't be drawn for those without a tier."""
    rng = np.random.default_rng(1)
    n = 2000
    cluster = np.tile(np.arange(500), 4)
    X = np.column_stack([rng.integers(0, 90, n), rng.random(n), rng.integers(0, 3, n)])
    X = X.astype(np.float32)
    X[rng.random(n) < 0.2, 2] = np.nan
    allowed = np.column_stack([np.ones(n, dtype=bool), ~np.isnan(X[:, 2])])
    scores = ScoreMatrix(rng.normal(size=(n, 3)), cluster)
    tree = PolicyTree(
        Branch(
            Split(0, 45.0),
            Leaf(1),
            Branch(Split(2, 1.0, equals=True), Leaf(2), Leaf(0)),
        ),
        0.0,
    )
    found = segments(tree, X, scores, allowed, SCHEMA, ["fix5", "gift"], {2})
    assert [s.sentence for s in found] == [
        "customers with recency_days at most 45: fix5",
        "customers with recency_days above 45 and tier new: gift",
        "customers with recency_days above 45 and tier other than new: no offer",
    ]
    here = [
        X[:, 0] <= 45,
        (X[:, 0] > 45) & (X[:, 2] == 1),
        (X[:, 0] > 45) & ~(X[:, 2] == 1),
    ]
    for segment, rows in zip(found, here, strict=True):
        assert segment.rows == rows.sum()
        assert segment.customers == len(set(cluster[rows]))
        assert segment.share == pytest.approx(rows.mean())
        for k, arm in ((1, "fix5"), (2, "gift")):
            drawn = rows & allowed[:, k - 1]
            contrast = scores.gamma[drawn, k] - scores.gamma[drawn, 0]
            assert segment.effects[arm] == clustered_mean(contrast, cluster[drawn])
    assert sum(s.share for s in found) == pytest.approx(1)
    assert found[0].effect == found[0].effects["fix5"]
    assert found[2].offer == SEND_NONE
    assert found[2].effect is None
    assert found[2].to_json()["offer"] is None


def test_a_coupon_that_nobody_in_a_segment_can_get_has_no_effect_there() -> None:
    X = np.array([[1], [2], [60], [70]], dtype=np.float32)
    scores = ScoreMatrix(np.zeros((4, 2)), np.arange(4))
    allowed = np.array([[True], [True], [True], [False]])
    tree = PolicyTree(Branch(Split(0, 45.0), Leaf(1), Leaf(0)), 0.0)
    low, high = segments(tree, X, scores, allowed, Schema(("recency_days",), {}), ["c"], set())
    assert set(low.effects) == {"c"}
    assert high.effects == {}


def test_one_leaf_is_everyone() -> None:
    X, scores = np.zeros((3, 1), np.float32), ScoreMatrix(np.zeros((3, 2)), np.arange(3))
    (found,) = segments(
        PolicyTree(Leaf(1), 0.0),
        X,
        scores,
        np.ones((3, 1), dtype=bool),
        Schema(("recency_days",), {}),
        ["c"],
        set(),
    )
    assert found.sentence == "everyone: c"
