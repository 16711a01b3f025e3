"""What a budget brings for today's customers: the champion's plan, scaled and written down.

The plan was measured at training, per exposure, on rows that nothing had seen. Here it is scaled
to the customers who may be written to, and nothing is predicted anew but what everything would
cost: where that differs from the rows of the plan, the customers are others than those, and a note
says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcdefaults

from features.config import Config
from features.errors import ConfigError
from serving.campaign import Campaign, config_digest, limits_of
from serving.load import LoadedModel, MlflowRegistry, RegistryUnreachable, write_atomically
from serving.plan_limits import Within, within_limits
from serving.population import Population
from serving.score import SIMULATED, write_bytes
from uplift.bundle import ScoringBundle
from uplift.evaluation import Predictions
from uplift.plan_report import SHOWN, nearest, plan_csv, plan_figure, plan_sentences
from uplift.planning import PLAN, BudgetPlan, PlanPoint, full_cost

FILES = ("plan.json", "plan.csv", "plan.png")
# What everything costs may differ so far, as a share, from the rows that the plan was measured on.
CLOSE = 0.25


@dataclass(frozen=True)
class Planned:
    """A plan in money of the whole campaign, and what has to be known of it."""

    plan: BudgetPlan
    customers: int
    """Who may be sent an offer: with consent, free of caps and open by the rules, not held out and
    not exploring."""
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    within: tuple[Within, ...] = ()
    """What stock and limits besides the budget leave at each point; empty without any."""

    def rows_within(self) -> list[dict[str, float]]:
        """Columns of plan.csv and plan.json beside each point of the plan."""
        rows = []
        for point, within in zip(self.plan.points, self.within, strict=False):
            gain = within.gain(point.gain)
            rows.append(
                {
                    "gain_within_limits": gain.value,
                    "gain_within_limits_lo": gain.lo,
                    "gain_within_limits_hi": gain.hi,
                    "spend_within_limits": within.spend,
                }
            )
        return rows


def bundle_plan(bundle: ScoringBundle) -> BudgetPlan | None:
    """The plan that the training left in a bundle."""
    spec = bundle.info.get(PLAN)
    return None if spec is None else BudgetPlan.from_json(spec)


def make_plan(population: Population, model: LoadedModel, config: Config) -> Planned:
    """The champion's plan for a population.

    Raises ConfigError where the model knows of no plan.
    """
    plan = bundle_plan(model.bundle)
    if plan is None:
        raise ConfigError(
            f"model {model.name} version {model.version}",
            expected="a model that was trained with a plan of its budget",
            found="one without",
            remedy="Train again: python -m training train --config ...",
        )
    population = population.seen_only()
    campaign = Campaign.of(config, model.bundle)
    moment = np.datetime64(population.as_of.replace(tzinfo=None), "us")
    left = population.open_at(moment)
    free = left.consent & left.eligible & ~(left.free_at > moment)
    open_arms = left.arms & campaign.offered_at(population.as_of) & campaign.in_stock
    usable = np.isfinite(population.scores.reward).all(axis=1)
    mine = free & open_arms.any(axis=1) & usable
    shares = campaign.shares
    customers = round(float(mine.sum()) * (1 - shares.h) * (1 - shares.exploration))
    notes = list(population.notes)
    if population.simulated:
        notes.insert(0, SIMULATED)
    if mine.any() and plan.full_budget:
        here = full_cost(
            Predictions(
                population.scores.reward[mine].astype(np.float64),
                population.scores.cost[mine].astype(np.float64),
                population.scores.response[mine].astype(np.float64),
                open_arms[mine],
            ),
            campaign.min_profit,
        )
        if abs(here / plan.full_budget - 1) > CLOSE:
            notes.append(
                f"to send everything costs {here:.3f} {config.currency} a customer here and "
                f"{plan.full_budget:.3f} in the exposures that the plan was measured on: these "
                "customers are others, so take the plan as a rough one"
            )
    scaled = plan.scaled(customers)
    within: list[Within] = []
    if (campaign.limits or any(campaign.stock)) and mine.any():
        cost = population.scores.cost.astype(np.float64)
        limits = [
            replace(limit, uses=np.broadcast_to(limit.uses, cost.shape)[mine])
            for limit in limits_of(campaign, population, cost)
        ]
        within = within_limits(
            [point.budget for point in scaled.points],
            customers,
            campaign.worth(population.scores.reward[mine].astype(np.float64)),
            cost[mine],
            open_arms[mine],
            limits,
            campaign.min_profit,
        )
        notes.append(
            "within stock and limits: the measured gain times what the models say is left of "
            "theirs; the curve, the rivals and the recommended budget are without stock and limits"
        )
    facts = {
        "campaign_id": campaign.campaign_id,
        "as_of": population.as_of.isoformat(),
        "currency": config.currency,
        "customers": customers,
        "customers_seen": len(population),
        "policy": model.bundle.policy,
        "model_name": model.name,
        "model_version": model.version,
        "bundle_sha256": model.sha256,
        "config_digest": config_digest(config),
        "data_digest": population.data_digest,
        "simulated": population.simulated,
        "notes": notes,
    }
    return Planned(scaled, customers, tuple(notes), facts, tuple(within))


def write_plan(planned: Planned, config: Config, out: Path) -> list[Path]:
    """Write plan.csv, plan.png and, last, plan.json into a folder; returns their paths.

    Raises ConfigError where `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            "--out", expected="a folder", found=str(out), remedy="Name another folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    rcdefaults()
    title = "What a budget brings"
    subtitle = f"{config.name}, {planned.customers:,} customers"
    subtitle += ", SIMULATED shop" if planned.facts["simulated"] else ""
    write_bytes(out / "plan.csv", plan_csv(planned.plan, planned.rows_within()).encode())
    picture = out / ".plan.png"
    plan_figure(planned.plan, title, subtitle, config.currency).savefig(picture, format="png")
    picture.replace(out / "plan.png")
    written = {**planned.facts, **planned.plan.to_json()}
    if planned.within:
        written["within_limits"] = [
            {"budget": point.budget, "kept": within.kept, **row, "binding": list(within.binding)}
            for point, within, row in zip(
                planned.plan.points, planned.within, planned.rows_within(), strict=True
            )
        ]
    write_atomically(out / "plan.json", written)
    return [out / name for name in FILES]


def keep_plan(planned: Planned, model: LoadedModel, written: Sequence[Path]) -> str:
    """Log the written files as MLflow artifacts of the run that trained the model, in a folder of
    the plan's moment; says where, or why not: a plan is worth as much without."""
    folder = f"plan/{datetime.fromisoformat(planned.facts['as_of']):%Y-%m-%dT%H%M%SZ}"
    try:
        run = MlflowRegistry().keep(model.name, model.version, written, folder)
    except RegistryUnreachable as error:
        return f"not logged to MLflow: {error}"
    return f"logged to MLflow: {folder} of run {run}"


def plan_summary(planned: Planned, config: Config, out: Path) -> str:
    """What the command prints."""
    facts = planned.facts
    lines = [
        f"{planned.customers:,} of {facts['customers_seen']:,} customers may be sent an offer as "
        f"of {facts['as_of']}, by {facts['policy']}, version {facts['model_version']} of "
        f"{facts['model_name']}",
        *plan_sentences(planned.plan, config.currency, config.policy.budget),
        *_within_sentences(planned),
        *(f"note: {note}" for note in planned.notes),
        f"wrote {', '.join(FILES)} to {out}",
    ]
    return "\n".join(lines)


def _within_sentences(planned: Planned) -> list[str]:
    """What is left within stock and limits, at the budgets that are shown."""
    if not planned.within:
        return []
    told = ["within stock and limits"]
    points: list[PlanPoint] = list(planned.plan.points)
    for share in SHOWN:
        point = nearest(planned.plan, share * planned.plan.full_budget)
        within = planned.within[points.index(point)]
        gain = within.gain(point.gain)
        binding = ", ".join(within.binding) or "none binds"
        told.append(
            f"  {point.budget:>14,.0f}  "
            f"{f'{gain.value:,.0f} [{gain.lo:,.0f}, {gain.hi:,.0f}]':<36}"
            f"{f'{within.kept:.0%} kept, {within.spend:,.0f} spent':<26}{binding}"
        )
    return told


def read_plan(path: Path) -> BudgetPlan:
    """The plan of a plan.json."""
    return BudgetPlan.from_json(json.loads(path.read_bytes()))
