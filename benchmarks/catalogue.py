"""What the whole catalogue does to what is learned: true value beside the core set's, by shop.

Several simulated shops, each learned from twice as a training does it, but for causalml's forest,
which is slow and far from being chosen. Compared are the chosen learners' policies, whatever the
gate makes of them: on a small shop it may well send nothing. The budget per customer is the
configuration's. More features than the effects depend on can only cost: what is asked is that they
cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from benchmarks.report import Options, progress, text_table
from benchmarks.truth import PER, policy_at, read_truth
from features.config import Config, load_config
from features.errors import ConfigError
from features.sources import open_source
from training.dataset import build_dataset
from training.evaluate import evaluate
from training.fit import fit_models
from training.train import offers_of, population

# Not the demo shop's seed 7, by which nothing may be chosen.
SEEDS = (11, 12, 13, 14)
CUSTOMERS = 100_000
SETS = ("core", "all")
LEFT_OUT = "causalml_forest"


@dataclass(frozen=True)
class Chosen:
    """The chosen learner of one training, the true value of its policy per held-out exposure, the
    most that is possible (`oracle`), and the root mean squared error of its effects."""

    learner: str
    value: float
    oracle: float
    error: float


def learn(config: Config) -> Chosen:
    """Learn, choose, and read the truth of the held-out exposures."""
    tables = open_source(config).tables()
    offers = offers_of(config)
    dataset = build_dataset(tables, config, offers)
    models = fit_models(dataset, config, offers, lambda _: None)
    found = evaluate(models, dataset, config, population(tables, config))
    truth = read_truth(config, dataset.exposure[models.is_test], list(models.test.arms))
    best = policy_at(truth.tau, truth.cost, found.budget_per_row)
    return Chosen(
        found.chosen.name,
        float((found.chosen.value.policy * truth.tau).sum(axis=1).mean()),
        float((best * truth.tau).sum(axis=1).mean()),
        float(np.sqrt(np.mean((found.predictions.reward - truth.tau) ** 2))),
    )


def mean_difference(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval (Student's t over the shops)."""
    values = np.asarray(differences)
    middle = float(values.mean())
    if len(values) < 2:
        return middle, -np.inf, np.inf
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return middle, middle - half, middle + half


def table(title: str, shops: dict[int, dict[str, Chosen]]) -> str:
    """A row per shop and their mean; values per 1,000 exposures."""
    rows: list[list[str] | None] = []
    for seed, found in shops.items():
        core, every = (found[name] for name in SETS)
        rows.append(
            [
                f"seed {seed}",
                f"{core.oracle * PER:.1f}",
                f"{core.value * PER:.1f} {core.learner}",
                f"{every.value * PER:.1f} {every.learner}",
                f"{(every.value - core.value) * PER:+.1f}",
                f"{core.error:.3f}",
                f"{every.error:.3f}",
            ]
        )
    mean = {
        name: [np.mean([getattr(s[name], of) for s in shops.values()]) for of in ("value", "error")]
        for name in SETS
    }
    differences = [s["all"].value - s["core"].value for s in shops.values()]
    middle, low, high = (d * PER for d in mean_difference(differences))
    rows += [
        None,
        [
            "mean",
            f"{np.mean([s['core'].oracle for s in shops.values()]) * PER:.1f}",
            *(f"{mean[name][0] * PER:.1f}" for name in SETS),
            f"{middle:+.1f}",
            *(f"{mean[name][1]:.3f}" for name in SETS),
        ],
    ]
    verdict = "holds" if middle >= 0 else "missed" if high < 0 else "not told apart from a loss"
    return text_table(
        title,
        ["shop", "oracle", "core", "all", "all - core", "error, core", "error, all"],
        rows,
        [
            "True value per 1,000 held-out exposures of the chosen learner, and which it was;",
            "error: of its effects, root mean squared.",
            f"Aim: all at least core on average: {middle:+.1f} [{low:.1f}, {high:.1f}] (95%, over "
            f"shops): {verdict}.",
        ],
    )


def run(options: Options) -> str:
    """Train each shop with both sets; the table. Raises ConfigError but for a simulated source."""
    config = load_config(options.config, options.overrides)
    if config.source.kind != "simulated":
        raise ConfigError(
            "source.kind",
            expected="simulated: only there the truth is known",
            found=config.source.kind,
            remedy="Use configs/demo.yaml.",
        )
    customers = config.source.customers
    if not options.full:
        customers = min(customers, CUSTOMERS)
    budget = config.policy.budget
    learners = ", ".join(name for name in config.training.learners if name != LEFT_OUT)
    shops: dict[int, dict[str, Chosen]] = {}
    for seed in SEEDS:
        shops[seed] = {}
        for name in SETS:
            changes = [
                *options.overrides,
                f"source.customers={customers}",
                f"source.seed={seed}",
                f"training.seed={seed}",
                f"training.learners=[{learners}]",
                "training.response_targets=[]",
                f"features.set={name}",
            ]
            if budget is not None:
                changes.append(f"policy.budget={budget * customers / config.source.customers}")
            progress(f"catalogue: seed {seed}, {name}")
            shops[seed][name] = learn(load_config(options.config, changes))
    title = f"The whole catalogue on SIMULATED shops of {customers:,} customers, {config.currency}"
    return table(title, shops)
