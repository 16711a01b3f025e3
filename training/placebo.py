"""Evidence that the machinery finds nothing where there is nothing.

A placebo run trains on arms that were drawn anew, so no offer has an effect: no policy may earn. A
run with a random feature shows how much weight a column without meaning gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from features.config import Config
from training.dataset import Dataset
from training.evaluate import evaluate
from training.fit import fit_models
from training.gate import SEND_NOTHING, judge
from uplift.data import Schema
from uplift.diagnostics import draw_units
from uplift.offers import Offer
from uplift.scores import Estimate

RANDOM = "random_feature"


@dataclass(frozen=True)
class PlaceboRun:
    """effects: average effect on profit per arm, currency per row; gain: of the chosen policy
    against no offer; policy: what the gate would serve; importance: share of each feature."""

    effects: dict[str, Estimate]
    gain: Estimate
    policy: str
    importance: dict[str, float]

    @property
    def found_nothing(self) -> bool:
        """The gate sends no offer: right 19 times in 20."""
        return self.policy == SEND_NOTHING


def permuted_arms(dataset: Dataset, rng: np.random.Generator) -> Dataset:
    """The same rows with arms that belong to others: exchanged, draw by draw (`draw_units`), among
    those of equal probabilities, so that the design and every count stay. What a row brought and
    what it cost stay with it, so no arm has an effect on either."""
    data = dataset.training
    _, first, code = np.unique(draw_units(data), return_index=True, return_inverse=True)
    arm = data.arm[first].copy()
    kind = np.unique(data.assignment[first], axis=0, return_inverse=True)[1].ravel()
    for one in range(int(kind.max()) + 1):
        same = np.flatnonzero(kind == one)
        arm[same] = arm[rng.permutation(same)]
    return replace(dataset, training=replace(data, arm=arm[code]))


def with_random_feature(dataset: Dataset, rng: np.random.Generator) -> Dataset:
    """The same rows with one more feature, standard normal, that means nothing."""
    data = dataset.training
    noise = rng.normal(size=(len(data), 1)).astype(np.float32)
    schema = Schema((*data.schema.names, RANDOM), data.schema.levels)
    wider = replace(data, schema=schema, X=np.hstack([data.X, noise]))
    return replace(dataset, training=wider, given=(*dataset.given, RANDOM))


def placebo_run(
    dataset: Dataset,
    config: Config,
    offers: tuple[Offer, ...],
    population: int,
    progress: Callable[[str], None],
) -> PlaceboRun:
    """Fit, evaluate and judge a data set that one of the functions above made; nothing is logged.

    population: customers whom the budget is for.
    """
    models = fit_models(dataset, config, offers, progress)
    evaluation = evaluate(models, dataset, config, population)
    verdict = judge(evaluation, models, dataset, config)
    return PlaceboRun(
        dict(evaluation.effects),
        evaluation.chosen.value.gain,
        verdict.policy,
        dict(evaluation.importance),
    )
