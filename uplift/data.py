"""The engine's inputs: an encoded feature matrix and a training set.

Arms are codes 0..K; code 0 is control, code k is `arms[k - 1]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from uplift.errors import BundleError, DesignError

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Schema:
    """Names and order of the features, and the frozen levels of the categorical ones.

    Numbers and booleans are encoded as float32; a category as the position of its level. A missing
    value and a level that training has not seen are NaN.
    """

    names: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]

    @classmethod
    def learn(cls, frame: pd.DataFrame) -> Schema:
        """The schema of a frame: text columns are categories, with levels in sorted order."""
        levels = {
            str(name): tuple(sorted({str(v) for v in frame[name].dropna().unique()}))
            for name in frame.columns
            if not (
                pd.api.types.is_numeric_dtype(frame[name])
                or pd.api.types.is_bool_dtype(frame[name])
            )
        }
        return cls(tuple(str(c) for c in frame.columns), levels)

    @property
    def categorical(self) -> list[int]:
        """Positions of the categorical features."""
        return [i for i, name in enumerate(self.names) if name in self.levels]

    def encode(self, frame: pd.DataFrame) -> Float32Array:
        """(n, d) float32 matrix of a frame that holds every feature of the schema."""
        missing = [name for name in self.names if name not in frame.columns]
        if missing:
            raise DesignError(
                f"the features {', '.join(missing[:5])} are missing: expected "
                f"{len(self.names)} columns, found {len(self.names) - len(missing)}. "
                "Build the features with the configuration that the model was trained with."
            )
        X = np.empty((len(frame), len(self.names)), dtype=np.float32)
        for i, name in enumerate(self.names):
            column = frame[name]
            if name in self.levels:
                texts = column.astype("object").map(lambda v: None if pd.isna(v) else str(v))
                levels = pd.Index(list(self.levels[name]), dtype="object")
                codes = levels.get_indexer(pd.Index(texts, dtype="object"))
                X[:, i] = np.where(codes < 0, np.nan, codes)
            else:
                try:
                    values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
                    with np.errstate(over="ignore"):  # too large is infinite, so missing
                        X[:, i] = values
                except (TypeError, ValueError) as error:
                    raise DesignError(
                        f"the feature {name} must be a number: {error}. "
                        "Give the column the type that it had in training."
                    ) from None
        X[np.isinf(X)] = np.nan
        return X

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "levels": {k: list(v) for k, v in self.levels.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schema:
        try:
            return cls(tuple(data["names"]), {k: tuple(v) for k, v in dict(data["levels"]).items()})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the manifest's feature schema is damaged: {error}") from None


@dataclass(frozen=True)
class TrainingSet:
    """Exposures with a complete outcome, one row each.

    X            (n, d) float32, encoded by `schema`
    arm          (n,) codes 0..K
    y            (n,) outcome in its own unit
    reward       (n,) profit of the exposure, currency, every cost borne
    cost         (n,) what the exposure cost (coupon and contact), currency; 0 for control
    converted    (n,) 0 or 1: at least one valid order (or a positive given outcome)
    assignment   (n, K + 1) probability of every arm; 0 where an arm was not eligible
    cluster      (n,) codes of the unit of randomisation
    customer     (n,) customer ids
    assigned_at  (n,) UTC
    weight       (n,) how many rows each stands for, above 0; not given: 1. It enters every fit,
                 share and score as that many equal rows of the same customer would
    """

    schema: Schema
    arms: tuple[str, ...]
    X: Float32Array
    arm: IntArray
    y: FloatArray
    reward: FloatArray
    cost: FloatArray
    converted: FloatArray
    assignment: FloatArray
    cluster: IntArray
    customer: npt.NDArray[np.object_]
    assigned_at: npt.NDArray[np.datetime64]
    weight: FloatArray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.weight is None:
            object.__setattr__(self, "weight", np.ones(len(self)))
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise DesignError(
                "row weights must be finite and above 0, found "
                f"{self.weight[~(np.isfinite(self.weight) & (self.weight > 0))][:5].tolist()}. "
                "Leave out the rows that stand for nothing."
            )
        for name in ("y", "reward", "cost", "converted", "assignment"):
            values = getattr(self, name)
            bad = ~np.isfinite(values)
            if bad.any():
                raise DesignError(
                    f"{name} holds {int(bad.sum())} values that are no finite numbers "
                    f"(first row {int(np.argwhere(bad)[0][0])}). No purchase is 0, not missing."
                )
        if len(self) and not (self.arm == 0).any():
            raise DesignError(
                "the experiment has no control: expected exposures with arm `control`, found "
                f"none among {len(self)}. Without control nothing shows what the offers changed."
            )
        own = self.own_probability
        if len(self) and (own <= 0).any():
            raise DesignError(
                f"{int((own <= 0).sum())} exposures have probability 0 for the arm they got. "
                "Check assignment_prob and experiment.assignment."
            )

    def __len__(self) -> int:
        return len(self.arm)

    @property
    def n_arms(self) -> int:
        """K, the arms besides control."""
        return len(self.arms)

    @property
    def own_probability(self) -> FloatArray:
        """(n,) probability of the arm that each row got."""
        return self.assignment[np.arange(len(self)), self.arm]

    def weight_of(self, rows: BoolArray | IntArray) -> FloatArray | None:
        """Weights of these rows; None where no row of the set has another weight than 1."""
        return None if (self.weight == 1).all() else self.weight[rows]

    def rows(self, index: BoolArray | IntArray) -> TrainingSet:
        """The same set with these rows only."""
        picked = {
            f.name: getattr(self, f.name)[index]
            for f in fields(self)
            if f.name not in ("schema", "arms")
        }
        return replace(self, **picked)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose. A simulated source may have been drawn with the
    very same seed, and then a split from the same stream would follow the customers' traits."""
    return np.random.default_rng([seed, *purpose.encode()])


def draw_folds(cluster: IntArray, arm: IntArray, folds: int, rng: np.random.Generator) -> IntArray:
    """(n,) fold of each row: drawn by cluster, stratified by the arm of a cluster's first row."""
    codes, first, inverse = np.unique(cluster, return_index=True, return_inverse=True)
    fold = np.empty(len(codes), dtype=np.int64)
    for code in np.unique(arm[first]):
        members = np.flatnonzero(arm[first] == code)
        fold[members] = (rng.permutation(len(members)) + rng.integers(folds)) % folds
    return fold[inverse]


def split_customers(
    customer: npt.NDArray[np.object_], cluster: IntArray, share: float, seed: int
) -> BoolArray:
    """(n,) True for the rows of about a `share` of the clusters, by a hash of their customers' ids.

    A cluster stays on its side whatever rows and other customers come, and a greater share only
    adds to a smaller one, so what one training held out the next one holds out too.
    """
    key = f"{seed % 10**16:016d}"
    hashed = pd.util.hash_array(customer.astype(object), hash_key=key)
    codes, inverse = np.unique(cluster, return_inverse=True)
    least = np.full(len(codes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, inverse, hashed)
    # The least of several hashes is small: hashed once more it is even again.
    even = pd.util.hash_array(least.astype("U20").astype(object), hash_key=key)
    picked: BoolArray = (even < share * 2.0**64)[inverse]
    return picked


def arm_codes(arm: Sequence[str] | npt.NDArray[np.object_], arms: Sequence[str]) -> IntArray:
    """Codes of arm names; `control` is 0. An unknown name is an error."""
    lookup = {"control": 0, **{name: k + 1 for k, name in enumerate(arms)}}
    unknown = sorted({str(a) for a in arm} - set(lookup))
    if unknown:
        raise DesignError(
            f"unknown arms {', '.join(unknown[:5])}: expected control or one of "
            f"{', '.join(arms)}. Add them to `offers` (active: false for retired coupons)."
        )
    return np.array([lookup[str(a)] for a in arm], dtype=np.int64)
