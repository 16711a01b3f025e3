"""The gate: a candidate becomes champion only with evidence, else a simpler policy, else none.

First form of statistics.md, section 11: the chosen learner needs a lower bound above no offer on
the test rows. If it fails, the fallbacks are tried in order: the best single coupon ranked by
response (against no offer and against random at equal cost), then that coupon to all (against no
offer). When none passes, "send no offer" is the champion and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from features.config import Config
from training.dataset import Dataset
from training.evaluate import Evaluation, make_bundle, predict
from training.fit import Models
from uplift.bundle import ScoringBundle
from uplift.data import FloatArray
from uplift.effects import EffectModel
from uplift.evaluation import BEST_RESPONSE, PolicyValue, model_policy, random_policy
from uplift.response import ResponseTerm
from uplift.scores import Estimate

RESPONSE_RANKED = "fallback_best_coupon_by_response"
SINGLE = "fallback_best_coupon_to_all"
SEND_NOTHING = "fallback_no_offer"


@dataclass(frozen=True)
class Step:
    """One test of the gate: the estimate whose one-sided 95% lower bound must be above 0."""

    candidate: str
    test: str
    estimate: Estimate

    @property
    def passed(self) -> bool:
        return self.estimate.bound > 0

    def sentence(self, currency: str) -> str:
        verdict = "passes" if self.passed else "fails"
        return (
            f"{self.candidate} {self.test}: {self.estimate.value:+.4f} {currency} per customer, "
            f"lower bound {self.estimate.bound:+.4f}, {verdict}"
        )


@dataclass(frozen=True)
class Verdict:
    """What is served, and why. `promote` is False where nothing may become champion."""

    policy: str
    bundle: ScoringBundle
    promote: bool
    steps: tuple[Step, ...]
    value: PolicyValue
    reason: str


def judge(evaluation: Evaluation, models: Models, dataset: Dataset, config: Config) -> Verdict:
    """Run the gate on the test rows."""
    chosen = evaluation.chosen
    steps = [Step(chosen.name, "against no offer", chosen.value.gain)]
    if steps[0].passed:
        return _verdict(chosen.name, chosen.bundle, steps, chosen.value, dataset, config)
    served = partial(make_bundle, models, dataset, config)
    k = 1 + list(models.test.arms).index(evaluation.rival_arms[BEST_RESPONSE])
    only = tuple(j == k - 1 and offer.active for j, offer in enumerate(models.offers))
    mean = np.zeros(models.test.n_arms)
    mean[k - 1] = evaluation.outcome_effects[models.test.arms[k - 1]].value

    ranked = served(_by_response(models, mean), RESPONSE_RANKED, only)
    value, at_random = _value(ranked, evaluation, models, config)
    tests = [
        Step(RESPONSE_RANKED, "against no offer", value.gain),
        Step(
            RESPONSE_RANKED,
            "against random",
            evaluation.scored.gain.compare(value.policy, at_random),
        ),
    ]
    steps += tests
    if all(step.passed for step in tests):
        return _verdict(RESPONSE_RANKED, ranked, steps, value, dataset, config)

    single = served(EffectModel(mean), SINGLE, only)
    value, _ = _value(single, evaluation, models, config)
    steps.append(Step(SINGLE, "against no offer", value.gain))
    if steps[-1].passed:
        return _verdict(SINGLE, single, steps, value, dataset, config)

    nothing = served(EffectModel(np.zeros_like(mean)), SEND_NOTHING, (False,) * len(only))
    value, _ = _value(nothing, evaluation, models, config)
    return _verdict(SEND_NOTHING, nothing, steps, value, dataset, config)


def _value(
    bundle: ScoringBundle, evaluation: Evaluation, models: Models, config: Config
) -> tuple[PolicyValue, FloatArray]:
    """What the bundle would do on the test rows, and its offers at random at equal cost."""
    p = predict(bundle, models.test, config.training.threads)
    policy = model_policy(p, evaluation.budget_per_row, config.policy.min_incremental_profit)
    value = evaluation.scored.value(bundle.policy, policy, p.cost)
    return value, random_policy(p, value.predicted_spend)


def _verdict(
    policy: str,
    bundle: ScoringBundle,
    steps: list[Step],
    value: PolicyValue,
    dataset: Dataset,
    config: Config,
) -> Verdict:
    if dataset.estimated and not config.training.accept_observational:
        return Verdict(
            policy,
            bundle,
            False,
            tuple(steps),
            value,
            "the effects are observational: no uplift model becomes champion "
            "(training.accept_observational: true would accept them, and is recorded)",
        )
    last = steps[-1]
    if policy == SEND_NOTHING:
        reason = "no policy was shown to earn its cost: send no offer"
    else:
        reason = f"{last.candidate} {last.test} has a lower bound of {last.estimate.bound:+.4f}"
    if dataset.estimated:
        reason += " (observational, accepted by training.accept_observational)"
    return Verdict(policy, bundle, True, tuple(steps), value, reason)


def _by_response(models: Models, mean: FloatArray) -> EffectModel:
    """Effects in proportion to the response probability, with the measured `mean` (K,): who is
    likelier to buy is taken to be changed more, which keeps the ranking by response."""
    response = models.response.model
    average = float(response.predict(models.train.X, models.outcome.settings.threads).mean())
    return EffectModel(np.zeros_like(mean), ((ResponseTerm(response), mean / average),))
