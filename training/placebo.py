"""Evidence that the machinery finds nothing where there is nothing.

A placebo run trains on arms that were drawn anew, so no offer has an effect: no policy may earn. A
run with a random feature shows how much weight a column without meaning gets. `evidence` is what
`python -m training placebo` prints of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from features.config import Config
from features.errors import ConfigError
from features.sources import open_source
from training.dataset import Dataset, build_dataset
from training.diagnostics import diagnose
from training.evaluate import evaluate
from training.fit import fit_models
from training.gate import SEND_NOTHING, judge
from training.train import offers_of, population
from uplift.data import Schema, stream
from uplift.diagnostics import draw_units
from uplift.offers import Offer
from uplift.scores import Estimate

RANDOM = "random_feature"
PER = 1000


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


def evidence(config: Config, progress: Callable[[str], None], runs: int = 1) -> str:
    """What a user reads: `runs` placebo runs of the configured training, and one with a random
    feature; nothing is logged. Raises ConfigError for no runs, and what a training raises for data
    that cannot be learned from.
    """
    if runs < 1:
        raise ConfigError(
            "--runs",
            expected="at least one run with permuted arms",
            found=str(runs),
            remedy="Leave it out for one.",
        )
    offers = offers_of(config)
    tables = open_source(config).tables()
    dataset = build_dataset(tables, config, offers)
    customers = population(tables, config)
    diagnose(dataset, tables, config, customers)

    def silently(text: str) -> None:
        """The learners' own lines are those of any training."""

    found = []
    for number in range(1, runs + 1):
        rng = stream(config.training.seed + number, "placebo")
        arms = permuted_arms(dataset, rng)
        found.append(placebo_run(arms, config, offers, customers, silently))
        progress(f"permuted arms, run {number} of {runs}: the gate serves {found[-1].policy}")
    wider = with_random_feature(dataset, stream(config.training.seed, RANDOM))
    noise = placebo_run(wider, config, offers, customers, silently)
    progress("a random feature beside the others")
    out = [
        "",
        "Permuted arms: the configured training where no offer has an effect",
        f"  (incremental profit per {PER:,} exposures, {config.currency}, 95% intervals)",
        "",
        f"  {'run':<6}{'chosen policy gains':<30}{'the gate serves':<36}effects with 0 inside",
    ]
    for number, run in enumerate(found, start=1):
        inside = sum(e.lo <= 0 <= e.hi for e in run.effects.values())
        out.append(
            f"  {number:<6}{_interval(run.gain):<30}{run.policy:<36}{inside} of {len(run.effects)}"
        )
    passed = sum(not run.found_nothing for run in found)
    shares = sorted(noise.importance.values(), reverse=True)
    share = noise.importance[RANDOM]
    return "\n".join(
        [
            *out,
            "",
            f"{passed} of {runs} let anything pass; by chance one in twenty may.",
            f"A random feature gets {share:.2%} of the predicted effects, more than "
            f"{sum(other < share for other in shares)} of {len(shares) - 1} others.",
        ]
    )


def _interval(e: Estimate) -> str:
    return f"{e.value * PER:.1f} [{e.lo * PER:.1f}, {e.hi * PER:.1f}]"
