"""The plan of the budget against the simulated shop's truth, in its own world and in others.

A large shop of each world is dealt into experiments of 4,000 customers, each trained and planned
by itself, and a population apart. What is true of every exposure is known, so at 5, 25, 50 and
100% of an experiment's full budget the plan stands beside what its policy truly gains on the
population, and beside the sum that the models themselves promise. One more training, of all those
customers together, is large enough to ask for more: that its policy is truly ahead of every rival
at every budget, and that each coupon is expected to cost what it truly costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.plan_truth import CostLine, cost_lines, cost_table
from benchmarks.truth import Truth, read_truth
from features.config import Config, load_config
from features.sources import open_source
from training.dataset import Dataset, build_dataset
from training.evaluate import Evaluation, evaluate, predictions_of
from training.fit import Models, fit_models
from training.planning import plan_of
from training.train import offers_of
from uplift.allocation import allocate
from uplift.data import BoolArray, FloatArray, IntArray, TrainingSet
from uplift.evaluation import BEST_UPLIFT, NO_OFFER, RANDOM, Predictions, rival_policies
from uplift.gain_curve import GainCurve, gain_curve
from uplift.planning import BudgetPlan, PlanPoint
from uplift.scores import Estimate, ScoreMatrix, clustered_mean

ROOT = Path(__file__).parents[2]
SHARES = (0.05, 0.25, 0.5, 1.0)
WORLDS = (0, 4, 5, 6)
EXPERIMENTS = 25
CUSTOMERS = 4_000
APART = 5  # times as many customers of the shop are the population
FAR = 20  # and so many where policies are compared that differ by some EUR per 1,000
SERVED = ("s", "x", "two_part", "ensemble")  # of a large training; each experiment learns X alone
Z = 1.959964


@dataclass(frozen=True)
class Shop:
    """The exposures of a large shop, their truth, and to which experiment each belongs (-1: the
    population)."""

    config: Config
    whole: Dataset
    truth: Truth
    experiment: IntArray


@dataclass(frozen=True)
class Experiment:
    """Arrays (4,) along SHARES, currency per exposure. true: what the policy gains on the
    population; promised: what its models say of the held-out rows."""

    planned: FloatArray
    error: FloatArray
    true: FloatArray
    promised: FloatArray


@dataclass(frozen=True)
class Study:
    """What one world showed; ahead: by rival, of the large training, an estimate per share."""

    world: int
    experiments: list[Experiment]
    ahead: dict[str, list[Estimate]]
    costs: list[CostLine]

    def along(self, name: str) -> FloatArray:
        """(experiments, 4) of one quantity."""
        return np.array([getattr(one, name) for one in self.experiments])

    @property
    def inside(self) -> BoolArray:
        away: BoolArray = np.abs(self.along("planned") - self.along("true")) <= (
            Z * self.along("error")
        )
        return away


def make_shop(world: int, apart: int = APART) -> Shop:
    config = load_config(
        ROOT / "configs" / "demo-small.yaml",
        [
            f"source.world={world}",
            f"source.seed={100 + world}",
            f"source.customers={(EXPERIMENTS + apart) * CUSTOMERS}",
            f"policy.budget={CUSTOMERS * 0.11}",
            "training.learners=[x]",
            "training.response_targets=[]",
            "training.folds=3",
            "training.threads=1",
        ],
    )
    dataset = build_dataset(open_source(config).tables(), config, offers_of(config))
    truth = read_truth(config, dataset.exposure, config.arms)
    number = np.unique(dataset.training.customer, return_inverse=True)[1]
    dealt = np.random.default_rng(world).permutation(number.max() + 1)[number]
    part = dealt % (EXPERIMENTS + apart)
    return Shop(config, dataset, truth, np.where(part < EXPERIMENTS, part, -1))


def trained(
    shop: Shop, rows: BoolArray, customers: int, learners: tuple[str, ...] = ("x",)
) -> tuple[Models, Evaluation, BudgetPlan]:
    """A training and its plan on some of a shop's exposures; the budget is per customer."""
    policy = shop.config.policy.model_copy(update={"budget": 0.11 * customers})
    training = shop.config.training.model_copy(update={"learners": list(learners)})
    config = shop.config.model_copy(update={"policy": policy, "training": training})
    dataset = replace(
        shop.whole, training=shop.whole.training.rows(rows), exposure=shop.whole.exposure[rows]
    )
    models = fit_models(dataset, config, offers_of(config), lambda _: None)
    evaluation = evaluate(models, dataset, config, customers)
    return models, evaluation, plan_of(evaluation.chosen.bundle, evaluation, models, config)


def points_of(plan: BudgetPlan) -> list[PlanPoint]:
    return [
        next(p for p in plan.points if np.isclose(p.budget, share * plan.full_budget))
        for share in SHARES
    ]


def path_of(p: Predictions) -> GainCurve:
    """The policies of all budgets; they do not depend on what is measured along them."""
    rows, arms = p.reward.shape
    nothing = ScoreMatrix(np.zeros((rows, arms + 1)), np.arange(rows))
    return gain_curve(nothing, p.reward, p.cost, eligible=p.allowed)


def predictions_on(evaluation: Evaluation, rows: TrainingSet) -> Predictions:
    bundle = evaluation.chosen.bundle
    return predictions_of(bundle, bundle.score(rows.X, 1), rows)


def one_experiment(shop: Shop, number: int) -> Experiment:
    _, evaluation, plan = trained(shop, shop.experiment == number, CUSTOMERS)
    apart = shop.experiment == -1
    path = path_of(predictions_on(evaluation, shop.whole.training.rows(apart)))
    held = evaluation.predictions
    n, points = len(held.reward), points_of(plan)
    policies = [path.policy_at(p.budget) for p in points]
    best = [
        allocate(held.reward, held.cost, budget=p.budget * n, eligible=held.allowed) for p in points
    ]
    return Experiment(
        np.array([p.gain.value for p in points]),
        np.array([p.gain.se for p in points]),
        np.array([(policy * shop.truth.tau[apart]).sum(axis=1).mean() for policy in policies]),
        np.array([made.value / n for made in best]),
    )


def as_dear(
    there: Predictions,
    name: str,
    arm: dict[str, int],
    ours: FloatArray,
    cost: FloatArray,
    budget: float,
) -> FloatArray:
    """The rival's policy that truly costs what ours does, or all of it where that is less."""
    target = float((ours * cost).sum(axis=1).mean())
    low, high = 0.0, 3.0 * budget
    for _ in range(14):
        middle = (low + high) / 2
        policy = rival_policies(there, arm, middle)[name]
        dearer = float((policy * cost).sum(axis=1).mean()) > target
        low, high = (low, middle) if dearer else (middle, high)
    return rival_policies(there, arm, high)[name]


def large(shop: Shop) -> tuple[dict[str, list[Estimate]], list[CostLine]]:
    """One training of all experiments' customers: how far its policy is truly ahead of its rivals
    on the population at equal true cost, clustered by customer, and what its held-out rows are
    expected to cost."""
    some, apart = shop.experiment >= 0, shop.experiment == -1
    models, evaluation, plan = trained(shop, some, EXPERIMENTS * CUSTOMERS, SERVED)
    population = shop.whole.training.rows(apart)
    there = predictions_on(evaluation, population)
    path, tau = path_of(there), shop.truth.tau[apart]
    arms = {rival: plan.arms.index(arm) + 1 for rival, arm in evaluation.rival_arms.items()}
    ahead: dict[str, list[Estimate]] = {}
    for point in points_of(plan):
        ours = path.policy_at(point.budget)
        alone = clustered_mean((ours * tau).sum(axis=1), population.cluster)
        ahead.setdefault(NO_OFFER, []).append(alone)
        for name in (RANDOM, *arms):
            one = {name: arms[name]} if name in arms else {}
            theirs = as_dear(there, name, one, ours, shop.truth.cost[apart], point.budget)
            more = ((ours - theirs) * tau).sum(axis=1)
            ahead.setdefault(name, []).append(clustered_mean(more, population.cluster))
    data, test = shop.whole.training.rows(some), models.is_test
    frame = pd.DataFrame(
        {
            "is_test": test,
            "arm": data.arm,
            "paid": data.cost,
            "cluster": data.cluster,
            "response": 0,
        }
    )
    for k, arm in enumerate(plan.arms):
        for kind in ("reward", "cost"):
            values = np.full(len(data), np.nan)
            values[test] = getattr(evaluation.predictions, kind)[:, k]
            frame[f"{kind}|{arm}"] = values
    report = {"arms": list(plan.arms), "offered": [True] * len(plan.arms)}
    return ahead, cost_lines(frame, shop.truth.cost[some], report)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("worlds"))
        for world in WORLDS:
            ahead, costs = large(make_shop(world, FAR))
            shop = make_shop(world)
            experiments = [one_experiment(shop, i) for i in range(EXPERIMENTS)]
            found.append(Study(world, experiments, ahead, costs))
            show(found[-1])
    return found


def width(study: Study) -> FloatArray:
    """(4,) mean planned error over the true one: the root mean square about 0, so that a bias
    counts."""
    errors = np.sqrt(((study.along("planned") - study.along("true")) ** 2).mean(axis=0))
    return np.asarray(study.along("error").mean(axis=0) / errors)


def show(study: Study) -> None:
    """What docs/evidence.md quotes, per 1,000 exposures."""

    def line(what: str, values: FloatArray) -> None:
        mean = 1000 * values.mean(axis=0)
        half = 1000 * Z * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        told = (f"{m:8.1f} +-{h:6.1f}" for m, h in zip(mean, half, strict=True))
        print(f"{what:<42}", *told)

    planned, true, promised = (study.along(n) for n in ("planned", "true", "promised"))
    print(f"\nworld {study.world}: {EXPERIMENTS} experiments at budgets of", *SHARES)
    line("planned gain", planned)
    line("true gain", true)
    line("planned less true", planned - true)
    line("promised by the models less true", promised - true)
    print("held", study.inside.sum(axis=0), "width over that of the true error",
          width(study).round(2))  # fmt: skip
    for name, estimates in study.ahead.items():
        told = (f"{1000 * e.value:.1f} [{1000 * e.lo:.1f}, {1000 * e.hi:.1f}]" for e in estimates)
        print(f"large training, truly ahead of {name:<24}", *told)
    print(cost_table(study.costs, "EUR"), flush=True)


@pytest.mark.slow
def test_the_planned_intervals_hold_the_truth_and_are_no_wider_than_they_need_be(
    studies: list[Study],
) -> None:
    held = np.concatenate([study.inside for study in studies])
    assert (held.mean(axis=0) >= 0.9).all()
    assert (np.mean([width(study) for study in studies], axis=0) <= 1.25).all()


@pytest.mark.slow
def test_what_the_models_promise_of_their_own_choice_is_too_high(studies: list[Study]) -> None:
    """In every world and at every budget; a plan has no such bias over all experiments."""
    for study in studies:
        over = study.along("promised") - study.along("true")
        error = over.std(axis=0, ddof=1) / np.sqrt(EXPERIMENTS)
        assert (over.mean(axis=0) > Z * error).all(), study.world
    off = np.concatenate([study.along("planned") - study.along("true") for study in studies])
    assert (np.abs(off.mean(axis=0)) < 3 * off.std(axis=0, ddof=1) / np.sqrt(len(off))).all()


@pytest.mark.slow
def test_the_policy_is_truly_ahead_of_every_rival_at_every_budget(studies: list[Study]) -> None:
    """Of random, of the best coupon to random customers and by response, and of sending nothing; of
    the best coupon by its own uplift from a quarter of the full budget on."""
    behind = [
        (study.world, name, share)
        for study in studies
        for name, estimates in study.ahead.items()
        for share, estimate in zip(SHARES, estimates, strict=True)
        if (name, share) != (BEST_UPLIFT, SHARES[0]) and estimate.lo <= 0
    ]
    assert behind == []


@pytest.mark.slow
def test_at_the_smallest_budget_it_is_ahead_of_the_best_coupon_by_uplift_on_average(
    studies: list[Study],
) -> None:
    """Some three customers in a hundred get anything there, nearly all of them that one coupon."""
    close = [study.ahead[BEST_UPLIFT][0] for study in studies]
    error = np.sqrt(sum(e.se**2 for e in close)) / len(close)
    assert np.mean([e.value for e in close]) > Z * error


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="in world 6 it is behind by 3 EUR of 45: docs/evidence.md")
def test_at_the_smallest_budget_no_world_is_behind_the_best_coupon_by_uplift(
    studies: list[Study],
) -> None:
    assert [s.world for s in studies if s.ahead[BEST_UPLIFT][0].hi <= 0] == []


@pytest.mark.slow
def test_each_coupon_is_expected_to_cost_what_it_truly_costs(studies: list[Study]) -> None:
    """What was paid for the 17,000 training rows of a coupon is itself off by 2 to 3%, so a single
    total may well miss by 5%: none is shown to, and the mean of all sixteen is near 1. The
    intervals of paid over expected are nominal 95% each: of sixteen, two may miss."""
    lines = [(study.world, line) for study in studies for line in study.costs]
    ratios = [(world, line.coupon, line.ratio) for world, line in lines]
    assert [r for r in ratios if r[2].lo > 1.05 or r[2].hi < 0.95] == []
    assert np.mean([ratio.value for _, _, ratio in ratios]) == pytest.approx(1.0, abs=0.02)
    missed = [(w, line.coupon) for w, line in lines if not line.paid.lo <= 1 <= line.paid.hi]
    assert len(missed) <= 2, missed
