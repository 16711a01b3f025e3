"""The plan of the budget, measured at training and kept in the bundle that it speaks of."""

from __future__ import annotations

from dataclasses import replace

from features.config import Config
from training.evaluate import Evaluation, predict
from training.fit import Models
from training.gate import Verdict
from uplift.bundle import ScoringBundle
from uplift.data import stream
from uplift.planning import PLAN, BudgetPlan, budget_plan


def planned(verdict: Verdict, evaluation: Evaluation, models: Models, config: Config) -> Verdict:
    """The verdict whose bundles know what a budget brings, on the held-out rows."""
    served = with_plan(verdict.bundle, evaluation, models, config)
    if verdict.challenger is verdict.bundle:
        return replace(verdict, bundle=served, challenger=served)
    challenger = with_plan(verdict.challenger, evaluation, models, config)
    return replace(verdict, bundle=served, challenger=challenger)


def with_plan(
    bundle: ScoringBundle, evaluation: Evaluation, models: Models, config: Config
) -> ScoringBundle:
    """The bundle with the plan of its own policy, as it is served."""
    plan = plan_of(bundle, evaluation, models, config)
    return replace(bundle, info={**bundle.info, PLAN: plan.to_json()})


def plan_of(
    bundle: ScoringBundle, evaluation: Evaluation, models: Models, config: Config
) -> BudgetPlan:
    """Per exposure, on rows that neither the models nor the choice of the rivals' coupons saw."""
    names = list(bundle.arms)
    return budget_plan(
        bundle.policy,
        bundle.arms,
        evaluation.scored,
        predict(bundle, models),
        stream(config.training.seed, "plan"),
        rivals={rival: names.index(arm) + 1 for rival, arm in evaluation.rival_arms.items()},
        min_profit=config.policy.min_incremental_profit,
    )
