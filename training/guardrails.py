"""What a policy must not make worse while it earns: unsubscriptions and returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.config import Config
from features.tables import Tables
from training.dataset import Dataset
from training.fit import Models
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.nuisances import doubly_robust, realised
from uplift.scores import Estimate, ScoreMatrix, from_influence

MIN_SEGMENT_CUSTOMERS = 100
MOST_LEVELS = 20
FIFTHS = ("least", "less", "middle", "more", "most")


@dataclass(frozen=True)
class Guardrail:
    """Something that may rise by `margin` per customer at most: 0 or 1 in `y` (n,), the rows of
    the data set, in their order."""

    name: str
    y: FloatArray
    margin: float


def guardrails(tables: Tables, dataset: Dataset, config: Config) -> list[Guardrail]:
    """Whatever the tables tell: whether the customer unsubscribed (events), or returned something
    (order lines below 0), in the exposure's window. What never happens is no guardrail."""
    assert tables.exposures is not None
    con, days = tables.con, int(config.outcome.window_days)
    exposures = con.compile(tables.exposures)
    gate = config.training.gate
    found = []

    def happened(rows: str, time: str) -> FloatArray:
        seen = con.raw_sql(
            f"""SELECT DISTINCT e.exposure_id FROM ({exposures}) e JOIN ({rows}) r
                ON r.customer_id = e.customer_id AND r.{time} >= e.assigned_at
               AND r.{time} < e.assigned_at + INTERVAL {days} DAY"""
        ).df()
        hit = pd.Index(dataset.exposure).isin(pd.Index(seen["exposure_id"]))
        return np.asarray(hit, dtype=np.float64)

    if tables.events is not None:
        events = con.compile(tables.events)
        rows = f"SELECT * FROM ({events}) WHERE type = 'unsubscribed'"
        found.append(
            Guardrail("unsubscriptions", happened(rows, "occurred_at"), gate.unsubscribe_margin)
        )
    if tables.transactions is not None:
        lines = con.compile(tables.transactions)
        rows = f"SELECT * FROM ({lines}) WHERE amount < 0"
        found.append(Guardrail("returns", happened(rows, "transacted_at"), gate.return_margin))
    return [g for g in found if g.y.any()]


def change(guardrail: Guardrail, policy: FloatArray, models: Models) -> Estimate:
    """How much more often it happens per customer under `policy` (n_test, K) than without offers,
    on the test rows. The arms' means come from the training rows."""
    train, test = models.train, models.test
    y, held = guardrail.y[~models.is_test], guardrail.y[models.is_test]
    sums = np.bincount(train.arm, weights=y * train.weight, minlength=train.n_arms + 1)
    counts = np.bincount(train.arm, weights=train.weight, minlength=train.n_arms + 1)
    mu = np.tile(sums / np.maximum(counts, 1e-12), (len(test), 1))
    gamma = doubly_robust(mu, realised(test.assignment, test.arm), test.arm, held)
    return ScoreMatrix(gamma, test.cluster).gain(policy)


def segment_gains(
    models: Models, response: FloatArray, scores: ScoreMatrix, policy: FloatArray
) -> dict[str, Estimate]:
    """What `policy` (n_test, K) gains per customer in each segment of the test rows: levels of the
    categorical features, and fifths of the response probability (n_test,). Segments with fewer than
    MIN_SEGMENT_CUSTOMERS customers, or without any offer, are left out."""
    gains = scores.gains(policy)
    treated: BoolArray = np.asarray(policy.any(axis=1))
    return {
        name: _mean_in(gains, rows, scores.cluster)
        for name, rows in _segments(models, response).items()
        if bool(treated[rows].any())
        and len(np.unique(scores.cluster[rows])) >= MIN_SEGMENT_CUSTOMERS
    }


def _segments(models: Models, response: FloatArray) -> dict[str, BoolArray]:
    schema, X = models.test.schema, models.test.X
    found: dict[str, BoolArray] = {}
    for i, name in enumerate(schema.names):
        levels = schema.levels.get(name, ())
        if 0 < len(levels) <= MOST_LEVELS:
            found |= {f"{name} = {level}": X[:, i] == code for code, level in enumerate(levels)}
    if np.ptp(response) > 0:
        cuts = np.quantile(response, [0.2, 0.4, 0.6, 0.8])
        fifth = np.searchsorted(cuts, response, side="right")
        found |= {f"{word} likely to buy": fifth == j for j, word in enumerate(FIFTHS)}
    return found


def _mean_in(values: FloatArray, rows: BoolArray, cluster: IntArray) -> Estimate:
    mean = float(values[rows].mean())
    return from_influence(mean, values[rows] - mean, cluster[rows])
