"""Judge candidates on rows that no model, calibrator or model choice has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.config import Config
from training.dataset import Dataset
from training.fit import Models
from uplift.bundle import Money, ScoringBundle
from uplift.costs import calibrate_costs, calibrated
from uplift.data import BoolArray, FloatArray, TrainingSet, stream
from uplift.effects import EffectModel
from uplift.evaluation import (
    NO_OFFER,
    PolicyValue,
    Predictions,
    Scored,
    choose_rivals,
    model_policy,
    rival_policies,
)
from uplift.importance import importance
from uplift.nuisances import Problem, doubly_robust, realised
from uplift.scores import (
    Estimate,
    ScoreMatrix,
    calibration_slope,
    clustered_mean,
    decile_table,
    qini_curve,
)

IMPORTANCE_ROWS = 1000
DECIDING_METRIC = "validation_gain_at_budget"


@dataclass(frozen=True)
class Candidate:
    """One learner's policy at the budget.

    validation   gain per row on the training rows, out of fold: what the choice is made by
    value        on the test rows
    against      paired differences to the rivals at equal cost, on the test rows
    slope        calibration of the effect of the recommended arm; deciles, of the same
    curve        cost and gain per row along the ranking by net value
    """

    name: str
    bundle: ScoringBundle
    validation: Estimate
    value: PolicyValue
    against: Mapping[str, Estimate]
    slope: Estimate
    deciles: list[dict[str, Any]]
    curve: tuple[FloatArray, FloatArray]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The test rows' numbers, currency per row (one row is one exposure).

    effects   per arm: average effect on profit, and in units of the outcome
    rivals    their values at the cost of the chosen candidate
    chosen    the candidate with the best validation gain
    importance  share of each feature in its predicted effects, the largest first
    """

    candidates: list[Candidate]
    chosen: Candidate
    rivals: Mapping[str, PolicyValue]
    rival_arms: Mapping[str, str]
    effects: Mapping[str, Estimate]
    outcome_effects: Mapping[str, Estimate]
    budget_per_row: float | None
    rows: int
    importance: Mapping[str, float]
    scored: Scored = field(repr=False)
    predictions: Predictions = field(repr=False)


def money_of(config: Config) -> Money:
    outcome = config.outcome
    return Money(outcome.kind, outcome.value, outcome.margin_rate or 1.0)


def make_bundle(
    models: Models,
    dataset: Dataset,
    config: Config,
    effects: EffectModel,
    policy: str,
    offered: tuple[bool, ...] | None = None,
    calibration: FloatArray | None = None,
) -> ScoringBundle:
    """The bundle that would serve these effects; `offered` defaults to the active offers, and
    `calibration` of the costs to none."""
    active = tuple(offer.active for offer in models.offers)
    return ScoringBundle(
        schema=models.train.schema,
        offers=models.offers,
        offered=active if offered is None else offered,
        policy=policy,
        effects=effects,
        costs=models.costs.model,
        cost_calibration=np.tile([0.0, 1.0, 0.0], (len(active), 1))
        if calibration is None
        else calibration,
        response=models.response.model,
        money=money_of(config),
        frozen=json.loads(dataset.frozen.to_json()),
        features={"names": list(dataset.features), "given": list(dataset.given)},
        info={
            "name": config.name,
            "currency": config.currency,
            "outcome": config.outcome.model_dump(),
            "simulated": config.source.kind == "simulated",
            "exposures": len(models.train),
        },
        golden=models.test.X[:: max(1, len(models.test) // 16)][:16],
    )


def predict(bundle: ScoringBundle, data: TrainingSet, threads: int) -> Predictions:
    """What the bundle would say of these rows, exactly as it is served."""
    scores = bundle.score(data.X, threads)
    return Predictions(
        scores.reward.astype(np.float64),
        scores.cost.astype(np.float64),
        scores.response.astype(np.float64),
        allowed(bundle.offered, data),
    )


def allowed(offered: tuple[bool, ...], data: TrainingSet) -> BoolArray:
    """(n, K) arms that are offered and could have been drawn."""
    out: BoolArray = np.asarray(offered, dtype=bool)[None, :] & (data.assignment[:, 1:] > 0)
    return out


def scored_rows(
    data: TrainingSet, problem: Problem, costs: FloatArray, mu: FloatArray, y: FloatArray
) -> Scored:
    """Score matrices of money and cost. `mu` (n, K + 1) arm means that did not see the rows,
    `costs` (n, K) likewise."""
    e = realised(data.assignment, data.arm)
    gain = doubly_robust(mu, e, data.arm, y)
    mean_cost = np.hstack([np.zeros((len(data), 1)), costs])
    spend = doubly_robust(mean_cost, e, data.arm, data.cost)
    return Scored(ScoreMatrix(gain, data.cluster), ScoreMatrix(spend, data.cluster))


def evaluate(models: Models, dataset: Dataset, config: Config, population: int) -> Evaluation:
    """Every learner at the configured budget; the choice is made on validation rows only.

    population: customers whom the budget is for; the budget per row is budget / population.
    """
    budget = config.policy.budget
    per_row = None if budget is None else budget / population
    threads = config.training.threads
    train, test = models.train, models.test
    money = models.money
    on_train = scored_rows(train, money, models.costs.oof, money.mu, train.reward)
    test_costs = models.costs.model.predict(test.X, threads)
    on_test = scored_rows(test, money, test_costs, money.mean_on(test.X), test.reward)
    candidates = []
    for name, fitted in models.learners.items():
        calibration = calibrate_costs(train, models.costs.oof, fitted.oof)
        bundle = make_bundle(models, dataset, config, fitted.model, name, calibration=calibration)
        held = out_of_fold(bundle, fitted.oof, models)
        validation = on_train.gain.gain(
            model_policy(held, per_row, config.policy.min_incremental_profit)
        )
        rival_arms = choose_rivals(on_train, held, per_row)
        candidates.append(
            _judge(name, bundle, validation, rival_arms, models, on_test, per_row, config)
        )
    chosen = max(candidates, key=lambda c: c.validation.value)
    predictions = predict(chosen.bundle, test, threads)
    held = out_of_fold(chosen.bundle, models.learners[chosen.name].oof, models)
    arms = choose_rivals(on_train, held, per_row)
    spend = chosen.value.predicted_spend
    rivals = {
        name: on_test.value(name, policy, predictions.cost)
        for name, policy in rival_policies(predictions, arms, spend).items()
    }
    rivals[NO_OFFER] = on_test.value(NO_OFFER, np.zeros_like(predictions.cost), predictions.cost)
    outcome_gamma = (
        on_test.gain.gamma
        if models.outcome is money
        else doubly_robust(
            models.outcome.mean_on(test.X), realised(test.assignment, test.arm), test.arm, test.y
        )
    )
    outcome = ScoreMatrix(outcome_gamma, test.cluster)
    names = list(test.arms)
    return Evaluation(
        candidates=sorted(candidates, key=lambda c: -c.validation.value),
        chosen=chosen,
        rivals=rivals,
        rival_arms={rival: names[k - 1] for rival, k in arms.items()},
        effects=_effects(on_test.gain, test, names),
        outcome_effects=_effects(outcome, test, names),
        budget_per_row=per_row,
        rows=len(test),
        importance=_importance(chosen.bundle, test, config),
        scored=on_test,
        predictions=predictions,
    )


def _importance(bundle: ScoringBundle, test: TrainingSet, config: Config) -> dict[str, float]:
    """Of the effects predicted for some of the held-out rows."""
    rng = stream(config.training.seed, "importance")
    some = rng.choice(len(test), min(len(test), IMPORTANCE_ROWS), replace=False)
    names = bundle.schema.names
    # Threads cost more than they bring on so few rows.
    return importance(bundle.effects, test.X[some], names, rng, threads=1)


def _effects(matrix: ScoreMatrix, data: TrainingSet, names: list[str]) -> dict[str, Estimate]:
    """Per arm, on the rows where it could be drawn."""
    out = {}
    for k, name in enumerate(names, start=1):
        rows = data.assignment[:, k] > 0
        contrast = matrix.gamma[rows, k] - matrix.gamma[rows, 0]
        out[name] = clustered_mean(contrast, matrix.cluster[rows])
    return out


def out_of_fold(bundle: ScoringBundle, cate: FloatArray, models: Models) -> Predictions:
    """Predictions for the training rows, each by models that did not see its customer."""
    contact = np.array([o.contact_cost for o in bundle.offers])
    cost = calibrated(bundle.cost_calibration, models.costs.oof, cate)
    cost = np.maximum(cost, contact)
    return Predictions(
        bundle.money.reward(cate, cost, bundle.offers),
        cost,
        models.response.oof,
        allowed(bundle.offered, models.train),
    )


def _judge(
    name: str,
    bundle: ScoringBundle,
    validation: Estimate,
    rival_arms: Mapping[str, int],
    models: Models,
    on_test: Scored,
    per_row: float | None,
    config: Config,
) -> Candidate:
    p = predict(bundle, models.test, config.training.threads)
    policy = model_policy(p, per_row, config.policy.min_incremental_profit)
    value = on_test.value(name, policy, p.cost)
    rivals = rival_policies(p, rival_arms, value.predicted_spend)
    masked = np.where(p.allowed, p.reward, -np.inf)
    best = masked.argmax(axis=1)
    rows = np.flatnonzero(np.isfinite(masked.max(axis=1)))
    tau = masked[rows, best[rows]]
    cost = p.cost[rows, best[rows]]
    gamma = on_test.gain.gamma
    contrast = gamma[rows, best[rows] + 1] - gamma[rows, 0]
    cluster = on_test.gain.cluster[rows]
    return Candidate(
        name,
        bundle,
        validation,
        value,
        {rival: on_test.gain.compare(policy, other) for rival, other in rivals.items()},
        calibration_slope(tau, contrast, cluster),
        decile_table(tau, contrast, tau, cluster),
        qini_curve(tau / np.maximum(cost, 1e-9), contrast, cost),
        models.seconds[name],
    )
