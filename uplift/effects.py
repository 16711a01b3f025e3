"""What a fitted learner becomes: a sum of weighted terms, the same for every learner.

    effect of arm k = constant_k + sum over terms j of weight_jk * term_j(x)

A term is a LightGBM booster (with constants appended to x, for the S-learner's arm columns), a
forest kept as arrays, or a product of such models. So one class scores, saves and loads all
learners, and no learner's own code (nor pickle) is needed to serve it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightgbm as lgb
import numpy as np

from uplift.cores import own_threads
from uplift.data import BoolArray, Float32Array, FloatArray, IntArray
from uplift.errors import BundleError


class Term(Protocol):
    """A function of the feature matrix."""

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        """(n,) value at each row of X, shape (n, d)."""
        ...

    def files(self) -> tuple[str, bytes]:
        """(suffix, content) of the file that holds the term's heavy part."""
        ...

    def spec(self) -> dict[str, Any]:
        """The light part, for the manifest."""
        ...


@dataclass(frozen=True)
class BoosterTerm:
    """A LightGBM booster, trimmed to the trees that are used.

    `appended` are constants put behind the columns of x (the S-learner's arm indicators);
    `link` is identity, or sigmoid for a booster of log-odds. The booster always predicts raw
    scores, so that a model of another objective can't change the meaning.
    """

    booster: lgb.Booster
    link: str = "identity"
    appended: tuple[float, ...] = ()

    @classmethod
    def from_text(
        cls, text: str, link: str = "identity", appended: Sequence[float] = ()
    ) -> BoosterTerm:
        return cls(lgb.Booster(model_str=text), link, tuple(appended))

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        if len(X) == 0:
            return np.zeros(0)
        if self.appended:
            tail = np.tile(np.asarray(self.appended, dtype=np.float32), (len(X), 1))
            X = np.hstack([X, tail])
        # Predicting with the settings of one call changed for another is not thread-safe in
        # LightGBM, so `num_threads` is the only one, and the same for all who work beside others.
        own = own_threads(threads)
        raw = np.asarray(self.booster.predict(X, raw_score=True, num_threads=own), dtype=np.float64)
        return sigmoid(raw) if self.link == "sigmoid" else raw

    def files(self) -> tuple[str, bytes]:
        return "txt", self.booster.model_to_string(num_iteration=-1).encode()

    def spec(self) -> dict[str, Any]:
        return {"type": "booster", "link": self.link, "appended": list(self.appended)}


@dataclass(frozen=True)
class ForestTerm:
    """One output of a forest of binary trees kept as arrays, averaged over the trees.

    feature       (nodes,) column to test, negative in a leaf; all trees' nodes behind each other
    threshold     (nodes,) x <= threshold goes left
    missing_left  (nodes,) whether NaN goes left
    left, right   (nodes,) node numbers
    leaf          (nodes, outputs) values; `output` is the column that this term gives
    roots         (trees,) node numbers
    """

    feature: IntArray
    threshold: FloatArray
    missing_left: BoolArray
    left: IntArray
    right: IntArray
    leaf: FloatArray
    roots: IntArray
    output: int

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        total = np.zeros(len(X))
        for root in self.roots:
            node = np.full(len(X), root)
            active = np.flatnonzero(self.feature[node] >= 0)
            while len(active):
                at = node[active]
                tested = X[active, self.feature[at]].astype(np.float64)
                goes_left = np.where(
                    np.isnan(tested), self.missing_left[at], tested <= self.threshold[at]
                )
                node[active] = np.where(goes_left, self.left[at], self.right[at])
                active = active[self.feature[node[active]] >= 0]
            total += self.leaf[node, self.output]
        return total / len(self.roots)

    def files(self) -> tuple[str, bytes]:
        out = io.BytesIO()
        np.savez(out, **{name: getattr(self, name) for name in _FOREST_ARRAYS})
        return "npz", out.getvalue()

    def spec(self) -> dict[str, Any]:
        return {"type": "forest", "output": self.output}

    @classmethod
    def from_bytes(cls, content: bytes, spec: Mapping[str, Any]) -> ForestTerm:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                named = {name: arrays[name] for name in _FOREST_ARRAYS}
                return cls(**named, output=int(spec["output"]))
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"the arrays of a forest are damaged: {error}") from None


_FOREST_ARRAYS = ("feature", "threshold", "missing_left", "left", "right", "leaf", "roots")


class TermValues:
    """Values of terms at the rows of one matrix X (n, d), each computed once, however many models
    share it."""

    def __init__(self, X: Float32Array, threads: int = 0) -> None:
        self.X, self.threads = X, threads
        # With the term itself: an id alone could come again when the term is gone.
        self._known: dict[int, tuple[Term, FloatArray]] = {}

    def forget(self) -> None:
        """Let go of all values and their terms."""
        self._known.clear()

    def __call__(self, term: Term) -> FloatArray:
        if id(term) not in self._known:
            # The parts of a product are shared as well.
            if isinstance(term, ProductTerm):
                value = term.at(self)
            else:
                value = term.value(self.X, self.threads)
            self._known[id(term)] = (term, value)
        return self._known[id(term)][1]


@dataclass(frozen=True)
class EffectModel:
    """(K,) constants and terms, each with its (K,) weights."""

    constant: FloatArray
    terms: tuple[tuple[Term, FloatArray], ...] = ()

    @property
    def n_arms(self) -> int:
        return len(self.constant)

    def predict(self, X: Float32Array, threads: int = 0) -> FloatArray:
        """(n, K) predicted values, for X of shape (n, d)."""
        return self.at(TermValues(X, threads))

    def at(self, values: TermValues) -> FloatArray:
        """(n, K) predicted values at the rows of `values`."""
        total = np.tile(self.constant, (len(values.X), 1))
        for term, weights in self.terms:
            # One column at a time, in a fixed order: a row's sum must not depend on how many
            # rows are scored with it.
            value = values(term)
            for k in np.flatnonzero(weights):
                total[:, k] += weights[k] * value
        return total

    def scaled(self, factor: float) -> EffectModel:
        return EffectModel(
            self.constant * factor, tuple((term, w * factor) for term, w in self.terms)
        )

    def plus(self, other: EffectModel) -> EffectModel:
        """The sum of two models with as many outputs."""
        return EffectModel(self.constant + other.constant, self.terms + other.terms)

    def minus(self, other: EffectModel) -> EffectModel:
        """This model less another with as many outputs."""
        return self.plus(other.scaled(-1.0))

    def to_files(self, prefix: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest's part and the files, named `prefix`-NNN.suffix. Equal content is one
        file."""
        files: dict[str, bytes] = {}
        by_content: dict[bytes, str] = {}
        specs = []
        for term, weights in self.terms:
            suffix, content = term.files()
            name = by_content.setdefault(content, f"{prefix}-{len(by_content):03d}.{suffix}")
            files[name] = content
            specs.append({**term.spec(), "file": name, "weights": [float(w) for w in weights]})
        return {"constant": [float(c) for c in self.constant], "terms": specs}, files

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> EffectModel:
        boosters: dict[str, lgb.Booster] = {}
        terms: list[tuple[Term, FloatArray]] = []
        for item in spec["terms"]:
            name = item["file"]
            term: Term
            if item["type"] == "booster":
                if name not in boosters:
                    boosters[name] = lgb.Booster(model_str=files[name].decode())
                term = BoosterTerm(boosters[name], item["link"], tuple(item["appended"]))
            elif item["type"] in TERMS:
                term = TERMS[item["type"]](files[name], item)
            else:
                raise BundleError(f"unknown term type {json.dumps(item['type'])}")
            terms.append((term, np.asarray(item["weights"], dtype=np.float64)))
        return cls(np.asarray(spec["constant"], dtype=np.float64), tuple(terms))


@dataclass(frozen=True)
class ProductTerm:
    """The product of two models with one output each, kept in one JSON file."""

    one: EffectModel
    other: EffectModel

    def value(self, X: Float32Array, threads: int = 0) -> FloatArray:
        return self.at(TermValues(X, threads))

    def at(self, values: TermValues) -> FloatArray:
        """(n,) value at the rows of `values`."""
        product: FloatArray = self.one.at(values) * self.other.at(values)
        return product[:, 0]

    def files(self) -> tuple[str, bytes]:
        (one, files), (other, more) = self.one.to_files("one"), self.other.to_files("other")
        texts = {name: content.decode() for name, content in (files | more).items()}
        held = {"one": one, "other": other, "files": texts}
        return "json", json.dumps(held, sort_keys=True).encode()

    def spec(self) -> dict[str, Any]:
        return {"type": "product"}

    @classmethod
    def from_bytes(cls, content: bytes, spec: Mapping[str, Any]) -> ProductTerm:
        held = json.loads(content)
        files = {name: text.encode() for name, text in held["files"].items()}
        return cls(*(EffectModel.from_files(held[name], files) for name in ("one", "other")))


# Kinds of term that one file holds wholly, by the type their spec names.
TERMS: dict[str, Callable[[bytes, Mapping[str, Any]], Term]] = {
    "forest": ForestTerm.from_bytes,
    "product": ProductTerm.from_bytes,
}


def sigmoid(x: FloatArray) -> FloatArray:
    out: FloatArray = 1.0 / (1.0 + np.exp(-np.clip(x, -500, 500)))
    return out
