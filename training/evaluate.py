"""Judge candidates on rows that no model, calibrator or model choice has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from features.config import Config
from training.dataset import Dataset
from training.fit import Models
from uplift.bundle import Money, Scores, ScoringBundle
from uplift.calibration import Calibration, cross_calibrated, fit_calibration
from uplift.costs import calibrate_costs, unchanged
from uplift.data import BoolArray, FloatArray, TrainingSet, stream
from uplift.effect_report import EffectReport, recommended
from uplift.effects import EffectModel
from uplift.evaluation import (
    NO_OFFER,
    PolicyValue,
    Predictions,
    Scored,
    against,
    choose_rivals,
    model_policy,
    rival_policies,
    solve,
)
from uplift.gain_curve import GainCurve, gain_curve
from uplift.importance import importance
from uplift.learners.base import Fitted
from uplift.nuisances import Problem, doubly_robust, realised
from uplift.papers import PaperScore, paper_scores
from uplift.scores import Estimate, ScoreMatrix, clustered_mean
from uplift.selection import select

IMPORTANCE_ROWS = 1000
# A step of an isotonic calibration rests on at least this share of the rows.
STEP_SHARE = 0.02
# Standard errors by which a slope must miss 1: from there on a line with an estimated slope is
# nearer to the truth than none (Akaike 1974).
NEEDED = 2**0.5
DECIDING_METRIC = "validation_gain_at_budget"


@dataclass(frozen=True)
class Calibrating:
    """What the training rows, out of fold, asked of a learner's effects and costs.

    slope   of the effects as they were learned, of the recommended arms: 1 when calibrated
    kind    none, linear or isotonic: what was done about it
    cost_ratio  what the policy at the budget cost over what was predicted for whom it chose
    """

    slope: Estimate
    kind: str
    cost_ratio: float


@dataclass(frozen=True)
class Candidate:
    """One learner's policy at the budget, with calibrated effects and costs where needed.

    validation   gain per row on the training rows, out of fold: what the choice is made by
    value        on the test rows
    against      paired differences to the rivals on the test rows, at equal realised cost
    report       of the effects of the recommended arms, on the test rows
    gains        what the policy brings at every budget, on the test rows
    papers       scores as papers print them, by arm; for comparison with papers only
    price        shadow price on the training rows: profit per currency of cost at the margin
    oof          (n, K) calibrated effects of the training rows, out of fold
    """

    name: str
    bundle: ScoringBundle
    calibrating: Calibrating
    validation: Estimate
    value: PolicyValue
    against: Mapping[str, Estimate]
    report: EffectReport
    gains: GainCurve = field(repr=False)
    papers: Mapping[str, Mapping[str, PaperScore]] = field(repr=False)
    price: float
    oof: FloatArray = field(repr=False)
    seconds: float

    @property
    def slope(self) -> Estimate:
        """Calibration slope on the test rows: 1 when calibrated."""
        return self.report.line.b


@dataclass(frozen=True)
class Evaluation:
    """The test rows' numbers, currency per row (one row is one exposure).

    effects   per arm: average effect on profit, and in units of the outcome
    rivals    their values at the cost of the chosen candidate
    chosen    by validation gain; an ensemble, unless another is clearly better
    importance  share of each feature in its predicted effects, the largest first
    scored    the test rows' score matrices; on_train, those of the training rows
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
    on_train: Scored = field(repr=False)
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
    effect_calibration: Calibration | None = None,
) -> ScoringBundle:
    """The bundle that would serve these effects; `offered` defaults to the active offers,
    `calibration` of the costs and `effect_calibration` to none."""
    active = tuple(offer.active for offer in models.offers)
    return ScoringBundle(
        schema=models.train.schema,
        offers=models.offers,
        offered=active if offered is None else offered,
        policy=policy,
        effects=effects,
        costs=models.costs.model,
        cost_calibration=unchanged(len(active)) if calibration is None else calibration,
        effect_calibration=effect_calibration,
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
            # Whom the models never saw, so that a later training can tell.
            "split": {"seed": config.training.seed, "test_share": config.training.test_share},
        },
        golden=models.test.X[:: max(1, len(models.test) // 16)][:16],
    )


def predict(bundle: ScoringBundle, models: Models) -> Predictions:
    """What the bundle would say of the test rows, exactly as it is served."""
    return predictions_of(bundle, bundle.at(models.at_test), models.test)


def predictions_of(bundle: ScoringBundle, scores: Scores, data: TrainingSet) -> Predictions:
    """The bundle's scores of these rows, with the arms that they may get."""
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
    train, test = models.train, models.test
    money = models.money
    on_train = scored_rows(train, money, models.costs.oof, money.mu, train.reward)
    test_costs = models.costs.model.at(models.at_test)
    on_test = scored_rows(test, money, test_costs, money.mean_on(test.X), test.reward)
    candidates = []
    for fitted in models.learners.values():
        prepared = calibrate(fitted, models, dataset, config, on_train, per_row)
        candidates.append(_judge(prepared, models, config, on_train, on_test, per_row))
    chosen = _choose(candidates, on_train, models, config, per_row)
    predictions = predict(chosen.bundle, models)
    held = out_of_fold(chosen.bundle, chosen.oof, models)
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
        on_train=on_train,
        predictions=predictions,
    )


def _choose(
    candidates: list[Candidate],
    on_train: Scored,
    models: Models,
    config: Config,
    per_row: float | None,
) -> Candidate:
    """By validation gain; what combines the others stays unless one is clearly better."""
    named = {candidate.name: candidate for candidate in candidates}

    def sent(name: str) -> FloatArray:
        held = out_of_fold(named[name].bundle, named[name].oof, models)
        return model_policy(held, per_row, config.policy.min_incremental_profit)

    return named[
        select(
            {name: candidate.validation.value for name, candidate in named.items()},
            lambda one, other: on_train.gain.compare(sent(other), sent(one)),
        )
    ]


def _importance(bundle: ScoringBundle, test: TrainingSet, config: Config) -> dict[str, float]:
    """Of the effects predicted for some of the held-out rows."""
    rng = stream(config.training.seed, "importance")
    some = rng.choice(len(test), min(len(test), IMPORTANCE_ROWS), replace=False)
    names = bundle.schema.names
    # Threads cost more than they bring on so few rows.
    return importance(bundle.calibrated_effects, test.X[some], names, rng, threads=1)


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
    cost = bundle.expected_costs(models.costs.oof, cate)
    return Predictions(
        bundle.money.reward(cate, cost, bundle.offers),
        cost,
        models.response.oof,
        allowed(bundle.offered, models.train),
    )


@dataclass(frozen=True)
class Prepared:
    """A learner as it would be served. `oof` (n, K): its effects of the training rows, out of
    fold, calibrated by what the other folds show."""

    bundle: ScoringBundle
    oof: FloatArray
    calibrating: Calibrating


def calibrate(
    fitted: Fitted,
    models: Models,
    dataset: Dataset,
    config: Config,
    on_train: Scored,
    per_row: float | None,
) -> Prepared:
    """The bundle of a learner, with its effects and costs calibrated where the training rows, out
    of fold, ask for it; no test row is looked at.

    Effects: where the slope is clearly not 1 (`training.gate.calibration: auto`). Costs: always,
    on these effects; what remains between paid and predicted for the chosen is measured, and no
    cost is raised for it, since the total of each coupon would then be too high.
    """
    train = models.train

    def bundle_of(oof: FloatArray, effects: Calibration | None) -> ScoringBundle:
        costs = costs_on(oof, models)
        return make_bundle(
            models,
            dataset,
            config,
            fitted.model,
            fitted.name,
            calibration=costs,
            effect_calibration=effects,
        )

    oof, through = fitted.oof, None
    bundle = bundle_of(oof, None)
    slope = recommended(out_of_fold(bundle, oof, models), on_train.gain).line.b
    kind = config.training.gate.calibration
    if kind == "auto":
        kind = "linear" if abs(slope.value - 1) > NEEDED * slope.se > 0 else "none"
    if kind != "none":
        problem = models.outcome
        possible = (train.assignment[:, 1:] > 0) & (train.assignment[:, :1] > 0)
        least = max(2, round(STEP_SHARE * len(train)))
        through = fit_calibration(kind, oof, problem.gamma, possible, min_rows=least)
        oof = cross_calibrated(kind, oof, problem.gamma, problem.fold, possible, min_rows=least)
        bundle = bundle_of(oof, through)
    ratio = 1.0
    if per_row is not None:
        held = out_of_fold(bundle, oof, models)
        policy = model_policy(held, per_row, config.policy.min_incremental_profit)
        ratio = cost_ratio(on_train, policy, held.cost)
    return Prepared(bundle, oof, Calibrating(slope, kind, ratio))


def cost_ratio(on_train: Scored, policy: FloatArray, cost: FloatArray) -> float:
    """Measured over predicted cost of a policy; 1 where nothing is predicted."""
    predicted = float((policy * cost).sum(axis=1).mean())
    return on_train.spend.gain(policy).value / predicted if predicted > 0 else 1.0


def costs_on(cate: FloatArray, models: Models) -> FloatArray:
    """The calibration of the costs that belongs to effects cate (n, K) of the training rows, out
    of fold."""
    contact = np.array([offer.contact_cost for offer in models.offers])
    return calibrate_costs(models.train, models.costs.oof, cate, contact)


def _judge(
    prepared: Prepared,
    models: Models,
    config: Config,
    on_train: Scored,
    on_test: Scored,
    per_row: float | None,
) -> Candidate:
    bundle, least = prepared.bundle, config.policy.min_incremental_profit
    held = out_of_fold(bundle, prepared.oof, models)
    choice, price = solve(held, per_row, least)
    p = predict(bundle, models)
    policy = model_policy(p, per_row, least)
    value = on_test.value(bundle.policy, policy, p.cost)
    rivals = rival_policies(p, choose_rivals(on_train, held, per_row), value.predicted_spend)
    return Candidate(
        name=bundle.policy,
        bundle=bundle,
        calibrating=prepared.calibrating,
        validation=on_train.gain.gain(choice),
        value=value,
        against=against(on_test, policy, rivals, price),
        report=recommended(p, on_test.gain, config.training.seed),
        gains=gain_curve(
            on_test.gain,
            p.reward,
            p.cost,
            spend=on_test.spend,
            min_profit=least,
            eligible=p.allowed,
        ),
        papers=_papers(p, models.test),
        price=price,
        oof=prepared.oof,
        seconds=models.seconds[bundle.policy],
    )


def _papers(p: Predictions, test: TrainingSet) -> dict[str, dict[str, PaperScore]]:
    """Scores of papers by arm, of the given outcome; none where probabilities vary, since those
    scores know no probabilities."""
    if np.ptp(test.assignment, axis=0).max() > 1e-9:
        return {}
    found = {}
    for k, name in enumerate(test.arms, start=1):
        rows = np.flatnonzero((test.arm == 0) | (test.arm == k))
        treated: BoolArray = test.arm[rows] == k
        if treated.any() and not treated.all():
            found[name] = paper_scores(p.reward[rows, k - 1], treated, test.y[rows])
    return found
