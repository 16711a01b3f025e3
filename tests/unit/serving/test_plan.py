"""The plan of a bundle, scaled to the customers who may be sent an offer, and written down."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError
from serving.load import LoadedModel, MlflowRegistry
from serving.plan import keep_plan, make_plan, plan_summary, read_plan, write_plan
from serving.score import summary, write_decisions
from tests.unit.serving.small_shop import SALT, Shop, make_config
from uplift.evaluation import BEST_RANDOM, Predictions, Scored
from uplift.plan_report import nearest, plan_rows
from uplift.planning import PLAN, BudgetPlan, budget_plan
from uplift.policy import Reason
from uplift.scores import ScoreMatrix


@pytest.fixture(scope="module")
def plan(shop: Shop) -> BudgetPlan:
    """Measured on the shop's own customers, with scores around what the model predicts."""
    scores, rng = shop.population.scores, np.random.default_rng(1)
    n, k = scores.reward.shape
    rows = np.arange(n)
    gamma = np.column_stack([np.zeros(n), scores.reward + rng.normal(0, 1, (n, k))])
    paid = np.column_stack([np.zeros(n), scores.cost])
    p = Predictions(
        scores.reward.astype(float), scores.cost.astype(float), scores.response.astype(float),
        np.ones((n, k), dtype=bool),
    )  # fmt: skip
    scored = Scored(ScoreMatrix(gamma, rows), ScoreMatrix(paid, rows))
    return budget_plan("t", shop.model.bundle.arms, scored, p, rng, rivals={BEST_RANDOM: 1})


@pytest.fixture(scope="module")
def model(shop: Shop, plan: BudgetPlan) -> LoadedModel:
    bundle = replace(shop.model.bundle, info={**shop.model.bundle.info, PLAN: plan.to_json()})
    return replace(shop.model, bundle=bundle)


def test_it_is_scaled_to_whom_an_offer_may_be_sent(
    shop: Shop, model: LoadedModel, plan: BudgetPlan
) -> None:
    made = make_plan(shop.population, model, shop.config)
    # 300 but three without consent and one capped; a tenth held out, a tenth explores.
    assert made.customers == round(296 * 0.9 * 0.9)
    assert made.plan == plan.scaled(made.customers)
    assert made.notes == shop.population.notes


def test_customers_unlike_the_rows_of_the_plan_are_noted(
    shop: Shop, model: LoadedModel, plan: BudgetPlan
) -> None:
    dear = replace(plan, full_budget=2 * plan.full_budget)
    bundle = replace(model.bundle, info={PLAN: dear.to_json()})
    made = make_plan(shop.population, replace(model, bundle=bundle), shop.config)
    assert "these customers are others" in made.notes[-1]


def limited(shop: Shop, stock: int | None, **policy: object) -> Config:
    offers = [o | {"stock": stock} for o in json.loads(shop.config.model_dump_json())["offers"]]
    policy = {"budget": 120, "holdout_share": 0.1, "exploration_share": 0.1} | policy
    return make_config(shop.root / "tables", offers=offers, policy=policy)


def test_stock_and_limits_cut_the_gain(shop: Shop, model: LoadedModel, tmp_path: Path) -> None:
    """Ten pieces of each coupon for some 240 customers: the last point is what the best ten of
    each bring, and all money beyond them stays."""
    free = make_plan(shop.population, model, shop.config)
    made = make_plan(shop.population, model, limited(shop, 10))
    assert free.within == ()
    assert made.plan == free.plan
    last = made.within[-1]
    assert last.binding == ("stock of c5", "stock of p10")
    assert 0 < last.kept < 0.5
    # The twenty dearest offers of all bound what can be spent.
    scores = shop.population.scores.cost.astype(float)
    assert last.spend <= 10 * scores.max(axis=0).sum() * 1.25
    kept = [within.kept for within in made.within]
    assert all(a >= b - 0.02 for a, b in itertools.pairwise(kept[1:])), "less and less is left"
    spends = [within.spend for within in made.within]
    assert all(s <= p.budget + 1e-9 for s, p in zip(spends, made.plan.points, strict=True))
    told = plan_summary(made, shop.config, tmp_path)
    assert "within stock and limits" in told
    assert f"{last.kept:.0%} kept, {last.spend:,.0f} spent" in told
    write_plan(made, shop.config, tmp_path / "plan")
    with (tmp_path / "plan/plan.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    gain = made.plan.points[-1].gain
    assert float(row["gain_within_limits"]) == pytest.approx(
        gain.value * last.kept if gain.value > 0 else gain.value
    )
    spec = json.loads((tmp_path / "plan/plan.json").read_bytes())
    assert spec["within_limits"][-1]["binding"] == ["stock of c5", "stock of p10"]
    assert read_plan(tmp_path / "plan/plan.json") == made.plan


def test_limits_that_bind_nothing_leave_everything(shop: Shop, model: LoadedModel) -> None:
    made = make_plan(shop.population, model, limited(shop, 10_000))
    assert [within.kept for within in made.within] == pytest.approx(
        [1.0] * len(made.within), abs=0.01
    )
    assert {within.binding for within in made.within} == {()}
    free = made.plan.points[-1]
    assert made.within[-1].gain(free.gain).value == pytest.approx(free.gain.value, rel=0.01)
    # A cap on all offers of one coupon is a limit too.
    cap = {"name": "few", "of": "sends", "most": 5, "coupons": ["c5"]}
    capped = make_plan(shop.population, model, limited(shop, None, limits=[cap]))
    assert capped.within[-1].binding == ("few",)
    assert capped.within[-1].kept < 1


def test_a_stock_of_nothing_is_no_limit_but_a_closed_coupon(shop: Shop, model: LoadedModel) -> None:
    made = make_plan(shop.population, model, limited(shop, 0))
    assert made.customers == 0
    assert made.within == ()


def test_the_files_say_one_thing(shop: Shop, model: LoadedModel, tmp_path: Path) -> None:
    made = make_plan(shop.population, model, shop.config)
    paths = write_plan(made, shop.config, tmp_path / "plan")
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == sorted(p.name for p in paths)
    spec = json.loads((tmp_path / "plan/plan.json").read_bytes())
    assert spec["customers"] == made.customers
    assert read_plan(tmp_path / "plan/plan.json") == made.plan
    with (tmp_path / "plan/plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gain"]) for row in rows] == [q.gain.value for q in made.plan.points]
    assert set(rows[0]) >= {
        "budget", "gain_lo", "return_on_last_unit", "share_c5", "random", "ahead_of_random_lo",
        "best_coupon_random", "ahead_of_best_coupon_random_hi",
    }  # fmt: skip
    assert (tmp_path / "plan/plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    told = plan_summary(made, shop.config, tmp_path / "plan")
    assert f"recommended: {made.plan.recommended:,.0f}" in told
    assert f"the budget of 120 brings {made.plan.gain_at(120).value:,.0f}" in told


def test_a_plan_is_worth_as_much_without_mlflow(
    shop: Shop, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_plan(shop.population, model, shop.config)
    paths = write_plan(made, shop.config, tmp_path / "plan")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    assert keep_plan(made, model, paths).startswith("not logged to MLflow: there is no")
    asked: list[tuple[object, ...]] = []

    def keep(_: MlflowRegistry, *given: object) -> str:
        asked.append(given)
        return "r1"

    monkeypatch.setattr(MlflowRegistry, "keep", keep)
    assert keep_plan(made, model, paths) == "logged to MLflow: plan/2026-01-01T000000Z of run r1"
    assert asked == [("spring", "3", paths, "plan/2026-01-01T000000Z")]


def test_the_summary_of_decisions_tells_the_planned_gain(
    shop: Shop, model: LoadedModel, plan: BudgetPlan, tmp_path: Path
) -> None:
    written = write_decisions(shop.population, model, shop.config, SALT, tmp_path / "d.parquet")
    m = written.manifest
    decided = m["reasons"][Reason.BEST_NET_VALUE] + m["reasons"][Reason.BELOW_THRESHOLD]
    each = plan.gain_at((m["expected_cost"] - m["exploration_cost"]) / decided)
    assert m["planned_gain"]["value"] == pytest.approx(decided * each.value)
    told = summary(written)
    assert f"expected profit    {m['planned_gain']['value']:,.2f} EUR [" in told
    assert f"{m['expected_incremental_profit']:,.2f}" not in told


def test_limits_cut_the_planned_gain_of_decisions(
    shop: Shop, model: LoadedModel, plan: BudgetPlan, tmp_path: Path
) -> None:
    """As much as the models say is left of their own sum; limits that bind nothing cut nothing."""
    policy = {"budget": 120, "holdout_share": 0.1, "exploration_share": 0.0}

    def told(stock: int | None) -> dict[str, Any]:
        config = limited(shop, stock, **policy)
        file = write_decisions(shop.population, model, config, SALT, tmp_path / "d.parquet")
        assert "expected profit    " in summary(file)
        return dict(file.manifest)

    free, loose, tight = told(None), told(10_000), told(10)
    assert free["limits"] == []
    assert loose["planned_gain"]["value"] == pytest.approx(free["planned_gain"]["value"], rel=1e-6)
    assert tight["offers"] == 20
    kept = tight["expected_incremental_profit"] / free["expected_incremental_profit"]
    assert 0 < kept < 0.6
    assert tight["planned_gain"]["value"] == pytest.approx(
        kept * free["planned_gain"]["value"], rel=1e-6
    )


def test_a_model_without_a_plan_says_so(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="Train again"):
        make_plan(shop.population, shop.model, shop.config)


def test_a_file_is_no_folder(shop: Shop, model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("")
    with pytest.raises(ConfigError, match="expected a folder"):
        write_plan(make_plan(shop.population, model, shop.config), shop.config, tmp_path / "plan")


def test_the_table_has_a_row_per_budget(plan: BudgetPlan) -> None:
    rows = plan_rows(plan)
    assert [row["share_of_full"] for row in rows][-1] == 1.0
    assert nearest(plan, 0.26 * plan.full_budget).budget == pytest.approx(0.25 * plan.full_budget)
    assert sum(rows[-1][f"share_{arm}"] for arm in plan.arms) <= 1.0
