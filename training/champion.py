"""The champion of today on the test rows of a new training, scored as it serves.

It is asked only about customers whom it has not learned from either: its bundle says how they were
held out, and a hash of the customer decides that, so any later training can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.build import build_features
from features.config import Config
from features.frozen import FrozenValues
from features.tables import Tables
from training.dataset import Dataset
from training.evaluate import Evaluation
from training.fit import Models
from uplift.bundle import ScoringBundle
from uplift.data import BoolArray, Float32Array, FloatArray, Schema, split_customers
from uplift.evaluation import Predictions, Scored, model_policy
from uplift.scores import Estimate, ScoreMatrix

MIN_CUSTOMERS = 100


@dataclass(frozen=True)
class Champion:
    """A registered version with its verified bundle; `why_not`, where it could not be loaded."""

    version: str
    registered_at: datetime
    bundle: ScoringBundle | None
    why_not: str = ""


class History(Protocol):
    """What earlier trainings left behind."""

    def champion(self) -> Champion | None:
        """The version under the champion's alias, if any."""
        ...

    def times_used(self, digest: str) -> int:
        """How many trainings have judged a model on the test rows of this digest."""
        ...


@dataclass(frozen=True)
class Incumbent:
    """The champion beside a challenger, or `why_not` it could not be compared.

    days    since it was registered
    policy  (n_test, K) what it would send within the same budget
    unseen  (n_test,) rows of customers whom it did not learn from
    """

    version: str
    name: str
    days: float
    policy: FloatArray | None = None
    unseen: BoolArray | None = None
    why_not: str = ""

    def less_than(self, policy: FloatArray, scored: Scored, price: float) -> Estimate:
        """What `policy` (n_test, K) gains over the champion, paired, on the rows that neither has
        seen, at equal realised cost (`ScoreMatrix.charged`)."""
        assert self.policy is not None
        assert self.unseen is not None
        rows = self.unseen
        gain = ScoreMatrix(scored.gain.gamma[rows], scored.gain.cluster[rows])
        spend = ScoreMatrix(scored.spend.gamma[rows], scored.spend.cluster[rows])
        return gain.charged(spend, price).compare(policy[rows], self.policy[rows])


def fold_digest(dataset: Dataset, models: Models) -> str:
    """sha256 of the ids of the test rows' exposures: the same rows have the same digest."""
    ids = np.sort(dataset.exposure[models.is_test].astype(str))
    return hashlib.sha256("\n".join(ids.tolist()).encode()).hexdigest()


def incumbent(
    champion: Champion,
    tables: Tables | None,
    dataset: Dataset,
    models: Models,
    evaluation: Evaluation,
    config: Config,
    now: datetime,
) -> Incumbent:
    """Score the test rows by the champion. `tables`: to build its features where today's models
    have others."""
    days = (now - champion.registered_at).total_seconds() / 86_400
    bundle = champion.bundle
    if bundle is None:
        return Incumbent(champion.version, "", days, why_not=champion.why_not)
    none = Incumbent(champion.version, bundle.policy, days)
    unseen, why_not = _unseen(bundle, models)
    if unseen is None:
        return _without(none, why_not)
    policy = np.zeros((len(models.test), models.test.n_arms))
    ours = {arm: k for k, arm in enumerate(models.test.arms)}
    sent = [
        arm in ours and kept and models.offers[ours[arm]].active
        for arm, kept in zip(bundle.arms, bundle.offered, strict=True)
    ]
    if any(sent):
        X, why_not = champion_features(bundle, tables, dataset, models, config)
        if X is None:
            return _without(none, why_not)
        scores = bundle.score(X, config.training.threads)
        columns = [ours.get(arm, 0) for arm in bundle.arms]
        possible = models.test.assignment[:, 1:][:, columns] > 0
        allowed: BoolArray = np.asarray(sent, dtype=bool)[None, :] & possible
        p = Predictions(
            scores.reward.astype(np.float64),
            scores.cost.astype(np.float64),
            scores.response.astype(np.float64),
            allowed,
        )
        least = config.policy.min_incremental_profit
        found = model_policy(p, evaluation.budget_per_row, least)
        for k, column in enumerate(columns):
            policy[:, column] += found[:, k]
    return Incumbent(champion.version, bundle.policy, days, policy, unseen)


def _without(none: Incumbent, why_not: str) -> Incumbent:
    return Incumbent(none.version, none.name, none.days, why_not=why_not)


def _unseen(bundle: ScoringBundle, models: Models) -> tuple[BoolArray | None, str]:
    """(n_test,) rows of customers whom the champion did not learn from."""
    test = models.test
    if not bundle.arms:
        return np.ones(len(test), dtype=bool), ""  # it knows no effects
    split = bundle.info.get("split")
    if split is None:
        return None, "its bundle does not say which customers it was trained on"
    held = split_customers(test.customer, test.cluster, split["test_share"], split["seed"])
    customers = len(np.unique(test.cluster[held])) if held.any() else 0
    if customers < MIN_CUSTOMERS:
        return None, f"it has learned from all but {customers} of the held-out customers"
    return held, ""


def champion_features(
    bundle: ScoringBundle,
    tables: Tables | None,
    dataset: Dataset,
    models: Models,
    config: Config,
) -> tuple[Float32Array | None, str]:
    """(n_test, d) the test rows as the bundle reads them, or why that cannot be."""
    names, given = list(bundle.features["names"]), list(bundle.features["given"])
    absent = [g for g in given if g not in dataset.given]
    if absent:
        return None, f"it reads columns that the configuration no longer gives: {absent[0]}"
    test = models.test
    frame = decode(test.schema, test.X)
    same = dict(bundle.frozen) == json.loads(dataset.frozen.to_json())
    if set(names) <= set(dataset.features) and same:
        return bundle.schema.encode(frame), ""
    if tables is None:
        return None, "its features would have to be built from the tables"
    spine = pd.DataFrame({"customer_id": test.customer, "as_of": test.assigned_at})
    spine = pd.concat([spine, frame[given]], axis=1)
    frozen = FrozenValues.from_json(json.dumps(dict(bundle.frozen)))
    built = build_features(tables, spine, names, config, frozen)
    if built.missing:
        return None, f"it reads features without their table: {', '.join(built.missing[:5])}"
    return bundle.schema.encode(built.frame), ""


def decode(schema: Schema, X: Float32Array) -> pd.DataFrame:
    """The frame that `schema` encoded as X (n, d), but for levels that it does not know."""
    columns: Mapping[str, Any] = {
        name: _texts(schema.levels[name], X[:, i]) if name in schema.levels else X[:, i]
        for i, name in enumerate(schema.names)
    }
    return pd.DataFrame(columns)


def _texts(levels: tuple[str, ...], code: Float32Array) -> npt.NDArray[np.object_]:
    named = np.array([*levels, None], dtype=object)
    known = np.where(np.isnan(code), len(levels), code).astype(np.int64)
    out: npt.NDArray[np.object_] = named[known]
    return out
