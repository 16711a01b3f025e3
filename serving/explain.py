"""Why single customers get what they get: features and what each adds to the predicted effect.

For people, and apart from the server: it answers as the server does from the same snapshot, and
asks a copy of the model's boosters, so no request ever waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving import schemas
from serving.scorer import MICROS, Scorer
from uplift.contributions import Explainer, Why

# Customers that weigh the nodes of forests.
BACKGROUND_ROWS = 1000


@dataclass(frozen=True)
class Explained:
    """A decision as a dry run gives it. `arm` is the one whose effect is explained: the offered
    one, or without an offer the one of greatest expected incremental profit; `why` is None for an
    unknown customer, for a model without arms, and of a coupon that it has not seen."""

    decision: schemas.Decision
    arm: str | None
    why: Why | None


def explain(scorer: Scorer, ids: Sequence[str], most: int = 5) -> list[Explained]:
    """The decisions for distinct customers, in their order, with the `most` largest contributions
    to the effect that the decision shows as `uplift`."""
    people, bundle = scorer.snapshot.population, scorer.model.bundle
    decisions = scorer.answer(ids, request_id="explain", dry_run=True).decisions
    rows, known = people.find(ids)
    if not bundle.arms or not known.any():
        return [Explained(decision, None, None) for decision in decisions]
    arms = len(bundle.arms)
    offered = np.array(scorer.campaign.offered[:arms], dtype=bool)
    best = np.where(offered, people.scores.reward[rows, :arms], -np.inf).argmax(axis=1) + 1
    arm = np.array(
        [
            bundle.arms.index(d.coupon_id) + 1 if d.coupon_id in bundle.arms else int(k)
            for d, k in zip(decisions, best, strict=True)
        ],
        dtype=np.int64,
    )
    step = max(1, len(people) // BACKGROUND_ROWS)
    background = np.array(people.X[::step][:BACKGROUND_ROWS])
    explainer = Explainer(bundle.effects, background, bundle.effect_calibration)
    told = explainer.why(np.array(people.X[rows]), arm, bundle.schema, most)
    return [
        Explained(d, bundle.arms[k - 1], why)
        if there and d.coupon_id not in scorer.unseen
        else Explained(d, None, None)
        for d, k, why, there in zip(decisions, arm.tolist(), told, known.tolist(), strict=True)
    ]


def sentences(found: Sequence[Explained], currency: str, unit: str) -> str:
    """What the command prints; effects are in `unit`."""
    lines = []
    for one in found:
        d = one.decision
        action = f"offer {d.coupon_id}" if d.action == "offer" else "no offer"
        lines.append(f"{d.customer_id}: {action} ({d.reason})")
        if d.action == "offer":
            profit = d.expected_incremental_profit_micros / MICROS
            cost = d.expected_cost_micros / MICROS
            lines.append(f"  expected profit {profit:.2f} {currency}, cost {cost:.2f} {currency}")
        if one.why is None:
            continue
        lines.append(f"  predicted effect of {one.arm} {one.why.effect:+.4g} {unit}:")
        lines.append(f"    {one.why.base:+10.4g}  before anything is known of the customer")
        for name, value, amount in one.why.top:
            shown = "unknown" if value is None else value
            shown = f"{shown:,.6g}" if isinstance(shown, float) else shown
            lines.append(f"    {amount:+10.4g}  {name} {shown}")
        lines.append(f"    {one.why.others:+10.4g}  all other features")
    return "\n".join(lines)
