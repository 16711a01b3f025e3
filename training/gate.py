"""The gate: a candidate becomes champion only with evidence, else a simpler policy, else none.

The learner that was chosen on the training rows goes through the steps below on rows that nothing
has seen; every bound is one-sided. If it fails, the fallbacks are tried in order: the best single
coupon ranked by response (against no offer and against random at equal cost), then that coupon to
all (against no offer), each at half the level. When none passes, "send no offer" is the champion
and says so. Where there is a champion, whatever takes its place must be better.

    0 what was fixed beforehand   1 data   2 response model   3 effects   4 value, paired
    5 budget   6 guardrails       7 bundle
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.config import Config, GateConfig
from training.champion import Incumbent
from training.dataset import Dataset
from training.diagnostics import Diagnostics
from training.evaluate import (
    Candidate,
    Evaluation,
    costs_on,
    make_bundle,
    out_of_fold,
    predict,
)
from training.fit import Models
from training.gate_steps import (
    FAIL,
    NOT_RUN,
    PER,
    Step,
    budget_step,
    data_step,
    effect_steps,
    golden_step,
    guardrail_steps,
    money_step,
    response_step,
    seed_step,
    segment_step,
)
from training.guardrails import Guardrail, segment_gains
from uplift.bundle import ScoringBundle
from uplift.data import FloatArray
from uplift.effects import EffectModel
from uplift.evaluation import (
    BEST_RANDOM,
    BEST_RESPONSE,
    RANDOM,
    PolicyValue,
    against,
    model_policy,
    random_policy,
    solve,
)
from uplift.response import ResponseTerm
from uplift.scores import Estimate

RESPONSE_RANKED = "fallback_best_coupon_by_response"
SINGLE = "fallback_best_coupon_to_all"
SEND_NOTHING = "fallback_no_offer"
RIVAL_TESTS = {
    BEST_RESPONSE: "against response ranking",
    BEST_RANDOM: "against best single coupon",
}


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at besides the evaluation; without some of it, its steps are not run.

    incumbent   today's champion on the same test rows
    times_used  how often these test rows have judged a model, this time included
    again       gain of the chosen learner, learned with another seed; asked for last
    digest      of the test rows
    """

    diagnostics: Diagnostics | None = None
    guardrails: Sequence[Guardrail] = ()
    incumbent: Incumbent | None = None
    times_used: int = 1
    again: Callable[[], Estimate] | None = None
    digest: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is served, and why. `promote` is False where nothing may become champion; `challenger`
    is the bundle of the chosen learner, whatever came of it."""

    policy: str
    bundle: ScoringBundle
    promote: bool
    steps: tuple[Step, ...]
    value: PolicyValue
    reason: str
    challenger: ScoringBundle
    digest: str = ""
    times_used: int = 1
    alpha: float = 0.05

    def to_json(self) -> dict[str, Any]:
        """gate.json: currency per exposure."""
        return {
            "policy": self.policy,
            "promote": self.promote,
            "reason": self.reason,
            "challenger": self.challenger.policy,
            "test_rows_digest": self.digest,
            "times_used": self.times_used,
            "alpha": self.alpha,
            "steps": [step.to_json() for step in self.steps],
        }


@dataclass(frozen=True)
class _Contender:
    """A policy before the gate, with the shadow price that differences in cost are charged at."""

    name: str
    bundle: ScoringBundle
    value: PolicyValue
    price: float


@dataclass(frozen=True)
class _Gate:
    evaluation: Evaluation
    models: Models
    dataset: Dataset
    config: Config
    evidence: Evidence
    steps: list[Step] = field(default_factory=list)

    @property
    def settings(self) -> GateConfig:
        return self.config.training.gate

    @property
    def alpha(self) -> float:
        return self.settings.alpha / self.evidence.times_used

    @property
    def fallback_alpha(self) -> float:
        """Each of the two fallbacks is one more chance for what works by luck alone."""
        return self.alpha / 2

    @property
    def margin(self) -> float:
        """Currency per row; fixed by the training rows."""
        return self.settings.margin * max(self.evaluation.chosen.validation.value, 0.0)

    def tell(self, steps: Sequence[Step]) -> bool:
        """Keep the steps; whether all are passed."""
        self.steps.extend(steps)
        return all(step.passed for step in steps)

    def money(self, name: str, test: str, gain: Estimate, margin: float | None = None) -> Step:
        alpha = self.alpha if name == self.evaluation.chosen.name else self.fallback_alpha
        return money_step(name, test, gain, alpha, self.config.currency, margin)

    def frozen(self, name: str) -> Step:
        """What was fixed before the test rows were looked at."""
        e, times = self.evaluation, self.evidence.times_used
        customers = len(np.unique(self.models.test.cluster))
        budget = "no budget" if e.budget_per_row is None else f"budget {e.budget_per_row * PER:.1f}"
        text = (
            f"{customers:,} customers with {e.rows:,} exposures held out, used "
            f"{'once' if times == 1 else f'{times} times: level {self.alpha:.3g}'}; {budget}, "
            f"margin {self.margin * PER:.1f} {self.config.currency} per {PER:,}, "
            f"ranking by {self.settings.ranking}"
        )
        return Step(0, name, "fixed beforehand", "pass", text, float(times), threshold=self.alpha)

    def champion(self, contender: _Contender) -> list[Step]:
        """Better than the champion, or once that is old, not worse."""
        held = self.evidence.incumbent
        if held is None:
            return [Step(4, contender.name, "against the champion", NOT_RUN, "there is none yet")]
        test = f"against the champion (version {held.version}, {held.name})"
        if held.why_not:
            text = f"cannot be compared: {held.why_not}"
            return [Step(4, contender.name, test, FAIL, text)]
        gain = held.less_than(contender.value.policy, self.evaluation.scored, contender.price)
        old = held.days >= self.settings.champion_days
        return [self.money(contender.name, test, gain, self.margin if old else None)]

    def common(self, contender: _Contender) -> list[Step]:
        """Champion, budget, guardrails and bundle, which everything goes through."""
        e, name, policy = self.evaluation, contender.name, contender.value.policy
        segments = segment_gains(self.models, e.predictions.response, e.scored.gain, policy)
        currency = self.config.currency
        return [
            *self.champion(contender),
            budget_step(name, contender.value.spend, e.budget_per_row, self.settings, currency),
            *guardrail_steps(
                name, self.evidence.guardrails, policy, self.models, self.settings.alpha
            ),
            segment_step(name, segments, currency),
            golden_step(name, contender.bundle),
        ]

    def learner(self, chosen: Candidate) -> list[Step]:
        """All steps of the chosen learner."""
        alpha, currency = self.alpha, self.config.currency
        steps = [
            response_step(chosen.name, self.models, alpha),
            *effect_steps(chosen, self.settings, alpha, currency),
            self.money(chosen.name, "against no offer", chosen.value.gain),
            self.money(chosen.name, "against random", chosen.against[RANDOM]),
            *(
                self.money(chosen.name, test, chosen.against[rival], self.margin)
                for rival, test in RIVAL_TESTS.items()
                if rival in chosen.against
            ),
            *self.common(_Contender(chosen.name, chosen.bundle, chosen.value, chosen.price)),
        ]
        if all(step.passed for step in steps):
            gain, again = chosen.value.gain, self.evidence.again
            return [*steps, seed_step(chosen.name, gain, again, currency)]
        text = "nothing depends on it any more"
        return [*steps, Step(7, chosen.name, "another seed", NOT_RUN, text)]

    def contender(self, name: str, effects: EffectModel, oof: FloatArray, arm: int) -> _Contender:
        """A policy of one arm (1..K; 0: none) by these effects; `oof` (n, K), of the training
        rows. Its costs and shadow price are learned as the learners' are."""
        models, config, e = self.models, self.config, self.evaluation
        least, per_row = config.policy.min_incremental_profit, e.budget_per_row
        only = tuple(k == arm and offer.active for k, offer in enumerate(models.offers, start=1))
        costs = costs_on(oof, models)
        bundle = make_bundle(models, self.dataset, config, effects, name, only, costs)
        price = solve(out_of_fold(bundle, oof, models), per_row, least)[1]
        p = predict(bundle, models)
        value = e.scored.value(name, model_policy(p, per_row, least), p.cost)
        return _Contender(name, bundle, value, price)

    def at_random(self, contender: _Contender) -> Estimate:
        """The contender against its own offers at random, at equal cost."""
        p = predict(contender.bundle, self.models)
        policy = random_policy(p, contender.value.predicted_spend)
        rivals = {RANDOM: policy}
        scored = self.evaluation.scored
        return against(scored, contender.value.policy, rivals, contender.price)[RANDOM]

    def fallbacks(self) -> list[Callable[[], tuple[_Contender, list[Step]]]]:
        """In the order in which they are tried."""
        e, models = self.evaluation, self.models
        arms = list(models.test.arms)
        k = 1 + arms.index(e.rival_arms[BEST_RESPONSE])
        mean = np.zeros(len(arms))
        # Of the training rows: what is served must not have seen the test rows.
        problem, possible = models.outcome, models.train.assignment[:, k] > 0
        mean[k - 1] = float((problem.gamma[possible, k] - problem.gamma[possible, 0]).mean())
        everyone = np.tile(mean, (len(models.train), 1))

        def ranked() -> tuple[_Contender, list[Step]]:
            effects, oof = by_response(models, mean)
            one = self.contender(RESPONSE_RANKED, effects, oof, k)
            return one, [
                response_step(one.name, models, self.fallback_alpha),
                self.money(one.name, "against no offer", one.value.gain),
                self.money(one.name, "against random", self.at_random(one)),
                *self.common(one),
            ]

        def single() -> tuple[_Contender, list[Step]]:
            one = self.contender(SINGLE, EffectModel(mean), everyone, k)
            return one, [
                self.money(one.name, "against no offer", one.value.gain),
                *self.common(one),
            ]

        def nothing() -> tuple[_Contender, list[Step]]:
            effects = EffectModel(np.zeros(len(arms)))
            one = self.contender(SEND_NOTHING, effects, np.zeros_like(everyone), 0)
            return one, [*self.champion(one), golden_step(one.name, one.bundle)]

        return [ranked, single, nothing]


def judge(
    evaluation: Evaluation,
    models: Models,
    dataset: Dataset,
    config: Config,
    evidence: Evidence | None = None,
) -> Verdict:
    """Run the gate on the test rows."""
    gate = _Gate(evaluation, models, dataset, config, evidence or Evidence())
    chosen = evaluation.chosen
    accepted = config.training.accept_observational
    mine = _Contender(chosen.name, chosen.bundle, chosen.value, chosen.price)
    gate.tell([gate.frozen(chosen.name)])
    data = data_step(chosen.name, gate.evidence.diagnostics, dataset.estimated, accepted)
    trusted = gate.tell([data])
    if gate.tell(gate.learner(chosen)) and trusted:
        return _verdict(gate, mine, True, _because(gate, mine))
    if not trusted:
        return _verdict(
            gate,
            mine,
            False,
            "the effects are observational: no uplift model becomes champion "
            "(training.accept_observational: true would accept them, and is recorded)",
        )
    for fallback in gate.fallbacks():
        one, steps = fallback()
        if gate.tell(steps):
            return _verdict(gate, one, True, _because(gate, one))
    held = gate.evidence.incumbent
    assert held is not None  # without a champion, to send nothing always passes
    first = next(step for step in gate.steps if not step.passed)
    return _verdict(
        gate,
        mine,
        False,
        f"nothing was shown to be better than version {held.version} ({held.name}); "
        f"{first.candidate} failed first at: {first.test}, {first.text}",
    )


def _because(gate: _Gate, one: _Contender) -> str:
    if one.name == SEND_NOTHING:
        reason = "no policy was shown to earn its cost: send no offer"
    else:
        mine = one.name == gate.evaluation.chosen.name
        bound = one.value.gain.lower(gate.alpha if mine else gate.fallback_alpha)
        reason = f"{one.name} against no offer has a lower bound of {bound:+.4f}"
    if gate.dataset.estimated:
        reason += " (observational, accepted by training.accept_observational)"
    return reason


def _verdict(gate: _Gate, one: _Contender, promote: bool, reason: str) -> Verdict:
    order = {step.candidate: i for i, step in reversed(list(enumerate(gate.steps)))}
    steps = sorted(gate.steps, key=lambda step: (order[step.candidate], step.number))
    return Verdict(
        one.name,
        one.bundle,
        promote,
        tuple(steps),
        one.value,
        reason,
        gate.evaluation.chosen.bundle,
        gate.evidence.digest,
        gate.evidence.times_used,
        gate.alpha,
    )


def by_response(models: Models, mean: FloatArray) -> tuple[EffectModel, FloatArray]:
    """Effects in proportion to the response probability, with the measured `mean` (K,), and those
    of the training rows out of fold (n, K): who is likelier to buy is taken to be changed more,
    which keeps the ranking by response."""
    response = models.response.model
    average = float(response.predict(models.train.X, models.outcome.settings.threads).mean())
    effects = EffectModel(np.zeros_like(mean), ((ResponseTerm(response), mean / average),))
    return effects, models.response.oof[:, None] * mean / average
