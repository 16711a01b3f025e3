"""Encoding of features, and folds that keep a customer on one side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.truth.worlds import training_set
from uplift.data import Schema, TrainingSet, arm_codes, draw_folds, split_customers
from uplift.errors import BundleError, DesignError

NAN = np.float32("nan")
SCHEMA = Schema(("n", "flag", "kind"), {"kind": ("a", "b")})


def frame(**columns: object) -> pd.DataFrame:
    made: dict[str, object] = {"n": [1.5, 2.5], "flag": [True, False], "kind": ["b", "a"]}
    return pd.DataFrame(made | columns)


def encode(**columns: object) -> list[list[float]]:
    out: list[list[float]] = SCHEMA.encode(frame(**columns)).tolist()
    return out


def test_numbers_booleans_and_levels() -> None:
    X = SCHEMA.encode(frame())
    assert X.dtype == np.float32
    assert X.tolist() == [[1.5, 1.0, 1.0], [2.5, 0.0, 0.0]]


def test_the_schema_names_the_order_whatever_the_frame_has() -> None:
    turned = frame(further=["x", "y"])[["kind", "further", "flag", "n"]]
    assert np.array_equal(SCHEMA.encode(turned), SCHEMA.encode(frame()))


@pytest.mark.parametrize(
    "values",
    [
        ["c", "a"],
        [None, "a"],
        [np.nan, "a"],
        [pd.NA, "a"],
    ],
)
def test_unseen_and_missing_levels_are_missing(values: list[object]) -> None:
    X = SCHEMA.encode(frame(kind=pd.Series(values, dtype=object)))
    np.testing.assert_array_equal(X[:, 2], [NAN, 0.0])


def test_levels_of_a_categorical_column_are_matched_by_name_not_by_position() -> None:
    turned = pd.Categorical(["b", "a"], categories=["b", "z", "a"])
    assert np.array_equal(SCHEMA.encode(frame(kind=turned)), SCHEMA.encode(frame()))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [1.0, 2.0]),
        (pd.array([1, None], dtype="Int64"), [1.0, NAN]),
        (pd.Series([1.5, None], dtype=object), [1.5, NAN]),
        ([np.inf, -np.inf], [NAN, NAN]),
        ([1e300, -1e300], [NAN, NAN]),  # beyond float32
        (pd.array([True, None], dtype="boolean"), [1.0, NAN]),
        (pd.Series([True, None], dtype=object), [1.0, NAN]),
        (pd.Series([None, None], dtype=object), [NAN, NAN]),
    ],
    ids=["integers", "Int64", "None", "infinite", "too large", "boolean", "bool None", "all None"],
)
def test_numbers_of_every_type(values: object, expected: list[float]) -> None:
    np.testing.assert_array_equal(SCHEMA.encode(frame(n=values))[:, 0], np.float32(expected))


def test_a_word_where_training_had_a_number_is_refused() -> None:
    with pytest.raises(DesignError, match=r"the feature n must be a number: .*in training"):
        encode(n=["many", "few"])


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DesignError, match=r"features flag, kind are missing: expected 3 .*found 1"):
        SCHEMA.encode(frame()[["n"]])


def test_learned_levels_are_sorted_and_frozen() -> None:
    seen = pd.DataFrame({"t": ["z", None, "b", "z"], "n": [1, 2, 3, 4], "f": [True] * 4})
    schema = Schema.learn(seen)
    assert schema == Schema(("t", "n", "f"), {"t": ("b", "z")})
    assert schema.categorical == [0]
    np.testing.assert_array_equal(schema.encode(seen)[:, 0], [1.0, NAN, 0.0, 1.0])
    # What is encoded does not depend on the rows that it is encoded with.
    np.testing.assert_array_equal(schema.encode(seen.iloc[2:]), schema.encode(seen)[2:])


def test_the_schema_survives_json_and_refuses_damage() -> None:
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
    with pytest.raises(BundleError, match="feature schema is damaged"):
        Schema.from_json({"names": ["n"]})


def small(**changes: object) -> TrainingSet:
    parts: dict[str, object] = {
        "X": np.arange(4, dtype=np.float32)[:, None],
        "arm": np.array([0, 1, 0, 1]),
        "y": np.arange(4.0),
        "assignment": np.full((4, 2), 0.5),
    }
    return training_set(**(parts | changes))  # type: ignore[arg-type]


def test_rows_keeps_everything_in_step() -> None:
    whole = small()
    part = whole.rows(np.array([3, 0]))
    assert part.X[:, 0].tolist() == part.y.tolist() == [3.0, 0.0]
    assert part.arm.tolist() == [1, 0]
    assert part.customer.tolist() == ["u3", "u0"]
    assert part.arms == whole.arms == ("c1",)
    assert len(whole.rows(whole.y > 1)) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outcomes_must_be_numbers(bad: float) -> None:
    with pytest.raises(DesignError, match=r"y holds 1 values .*first row 2.*0, not missing"):
        small(y=np.array([0.0, 1.0, bad, 3.0]))


def test_an_experiment_without_control_is_refused() -> None:
    with pytest.raises(DesignError, match=r"no control: .*none among 4"):
        small(arm=np.ones(4, dtype=np.int64))


def test_an_arm_that_could_not_be_drawn_is_refused() -> None:
    with pytest.raises(DesignError, match="2 exposures have probability 0 for the arm they got"):
        small(assignment=np.tile([1.0, 0.0], (4, 1)))


def test_arm_codes_and_unknown_arms() -> None:
    assert arm_codes(["b", "control", "a"], ["a", "b"]).tolist() == [2, 0, 1]
    with pytest.raises(DesignError, match=r"unknown arms c, d: expected control or one of a, b"):
        arm_codes(["a", "d", "c"], ["a", "b"])


def test_folds_keep_a_cluster_together_and_share_every_arm_evenly() -> None:
    rng = np.random.default_rng(0)
    codes = rng.permutation(5000)[:900]  # clusters need not be 0..G-1
    cluster = np.repeat(codes, rng.integers(1, 5, 900))
    arm_of = dict(zip(codes, rng.choice(4, 900, p=[0.7, 0.2, 0.07, 0.03]), strict=True))
    arm = np.array([arm_of[c] for c in cluster])
    fold = draw_folds(cluster, arm, 5, np.random.default_rng(1))
    assert set(fold) == set(range(5))
    folds_of = pd.DataFrame({"c": cluster, "f": fold}).groupby("c")["f"].nunique()
    assert (folds_of == 1).all()
    per = pd.DataFrame({"a": arm, "f": fold, "c": cluster}).drop_duplicates("c")
    counts = per.groupby(["a", "f"]).size().unstack()
    assert counts.shape == (4, 5)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


def test_folds_are_drawn_and_not_read_off_the_order_of_rows() -> None:
    cluster, arm = np.arange(1000), np.zeros(1000, dtype=np.int64)
    one = draw_folds(cluster, arm, 5, np.random.default_rng(1))
    assert np.array_equal(one, draw_folds(cluster, arm, 5, np.random.default_rng(1)))
    other = draw_folds(cluster, arm, 5, np.random.default_rng(2))
    assert 0.1 < np.mean(one == other) < 0.3
    assert abs(np.corrcoef(cluster, one)[0, 1]) < 0.12
    assert abs(np.mean(one[:-1] == one[1:]) - 0.2) < 0.05


def ids(numbers: np.ndarray) -> np.ndarray:
    return np.array([f"k{i}" for i in numbers], dtype=object)


def test_splits_take_a_share_of_the_clusters_whole() -> None:
    cluster = np.repeat(np.arange(20_000), np.random.default_rng(0).integers(1, 6, 20_000))
    customer = ids(np.arange(len(cluster)))
    held = split_customers(customer, cluster, 0.3, 7)
    inside, outside = set(cluster[held]), set(cluster[~held])
    assert not inside & outside
    # a binomial of 20,000, whatever the clusters' sizes
    assert abs(len(inside) - 6000) < 4 * np.sqrt(20_000 * 0.3 * 0.7)
    size = np.bincount(cluster)
    assert abs(size[list(inside)].mean() - size.mean()) < 4 * size.std() / np.sqrt(6000)
    other = split_customers(customer, cluster, 0.3, 8)
    assert abs(np.mean(held & other) - 0.09) < 0.01


def test_a_customer_stays_on_its_side() -> None:
    """More rows, more customers, other codes and another order change nothing; a greater share
    only adds."""
    number = np.arange(5000)
    held = split_customers(ids(number), number, 0.3, 7)
    grown = np.random.default_rng(1).permutation(np.concatenate([number, number, number + 3000]))
    again = split_customers(ids(grown), 9000 - grown, 0.3, 7)
    assert np.array_equal(again[grown < 5000], held[grown[grown < 5000]])
    wider = split_customers(ids(number), number, 0.5, 7)
    assert (wider | ~held).all()
    assert wider.sum() > held.sum()
