"""The chosen learner once more, with another seed: does its policy earn the same?"""

from __future__ import annotations

from dataclasses import replace

from features.config import Config
from training.dataset import Dataset
from training.evaluate import Evaluation, calibrate, predict
from training.fit import AVERAGE, Models, average, settings_of
from uplift.data import draw_folds, stream
from uplift.evaluation import model_policy
from uplift.learners import LEARNERS, make_learner
from uplift.nuisances import prepare
from uplift.scores import Estimate

# Of the models that count, the one of all rows is learned in any case: two folds more cost less
# than half of what five do.
FOLDS = 2


def gain_again(
    evaluation: Evaluation, models: Models, dataset: Dataset, config: Config
) -> Estimate:
    """Gain per test row of the chosen learner's policy with other folds and another seed of the
    trees: its nuisances, itself (and those that have a weight in it) and its calibration are
    learned anew from the same training rows."""
    name, train, old = evaluation.chosen.name, models.train, models.outcome
    seed = config.training.seed + 1
    plain = replace(settings_of(config, len(train)), seed=seed)
    rng = stream(seed, "split")
    fold = draw_folds(train.cluster, train.arm, FOLDS, rng)
    problem = prepare(train, old.binned, old.target, fold, plain, seed, old.monotone)
    # Tuned settings are the learners' alone, not the nuisances'.
    problem = replace(problem, settings=replace(old.settings, seed=seed))
    if name == AVERAGE:
        parts = [n for n in models.learners if n in LEARNERS and LEARNERS[n].joins]
        fitted = average([make_learner(n).fit(problem) for n in parts])
    else:
        parts = carried(models, name) if LEARNERS[name].combines else []
        others = {n: make_learner(n).fit(problem) for n in parts}
        fitted = make_learner(name, others).fit(problem)
    again = replace(models, outcome=problem, learners={**models.learners, name: fitted})
    per_row = evaluation.budget_per_row
    prepared = calibrate(fitted, again, dataset, config, evaluation.on_train, per_row)
    p = predict(prepared.bundle, again)
    policy = model_policy(p, per_row, config.policy.min_incremental_profit)
    return evaluation.scored.gain.gain(policy)


def carried(models: Models, name: str) -> list[str]:
    """The learners that have a weight in learner `name`, which combines: those that share a term
    with it."""
    held = {id(term) for term, _ in models.learners[name].model.terms}
    return [
        n
        for n, fitted in models.learners.items()
        if n in LEARNERS
        and LEARNERS[n].joins
        and any(id(term) in held for term, _ in fitted.model.terms)
    ]
