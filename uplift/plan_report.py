"""A plan of a budget as a table, as sentences and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from uplift.evaluation import RIVALS
from uplift.planning import BudgetPlan, PlanPoint
from uplift.scores import Estimate

INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99ae"
# Dashes and colours of the rivals, told apart without colours too.
_LINES: tuple[tuple[Any, str], ...] = (
    ("--", "#5b7c99"),
    ("-.", "#2f6f4f"),
    (":", "#9c6b30"),
    ((0, (6, 1)), MUTED),
    ((0, (1, 1)), "#6b5b95"),
)
SHOWN = (0.05, 0.25, 0.5, 1.0)


def plan_rows(plan: BudgetPlan) -> list[dict[str, Any]]:
    """A row per budget, money in the plan's unit; `ahead_of_<rival>` with its 95% interval."""
    rows = []
    for point in plan.points:
        row: dict[str, Any] = {
            "budget": point.budget,
            "share_of_full": point.budget / plan.full_budget if plan.full_budget else 0.0,
            **_named("gain", point.gain),
            "spend": point.spend,
            **_named("return_on_last_unit", point.last_return),
        }
        row |= {f"share_{arm}": share for arm, share in zip(plan.arms, point.mix, strict=True)}
        for name in point.rivals:
            row[name] = point.rivals[name].value
            row |= _named(f"ahead_of_{name}", point.ahead[name])
        rows.append(row)
    return rows


def plan_csv(plan: BudgetPlan, more: Sequence[dict[str, float]] = ()) -> str:
    """The rows as CSV; `more`: further columns of each row, where there are any."""
    rows = plan_rows(plan)
    for row, further in zip(rows, more, strict=False):
        row |= further
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def plan_sentences(plan: BudgetPlan, currency: str, budget: float | None = None) -> list[str]:
    """What the command prints: four budgets, the configured one, and the recommended one."""
    if not plan.full_budget:
        return [f"{plan.policy} sends nothing, so no budget brings anything"]
    lines = [
        f"what a budget brings, {currency}, measured on {plan.rows:,} held-out exposures; "
        "95% intervals",
        f"  {'budget':>14}  {'incremental profit':<36}{'return on the last unit':<26}coupons",
    ]
    for share in SHOWN:
        point = nearest(plan, share * plan.full_budget)
        mix = ", ".join(
            f"{arm} {part:.0%}" for arm, part in zip(plan.arms, point.mix, strict=True) if part > 0
        )
        lines.append(
            f"  {point.budget:>14,.0f}  {_told(point.gain):<36}"
            f"{_told(point.last_return, 2):<26}{mix}"
        )
    lines.append("how much more that is than")
    for name in plan.points[-1].rivals:
        coupon = f" ({plan.rival_arms[name]})" if name in plan.rival_arms else ""
        told = "; ".join(
            f"{share:.0%}: {_told(nearest(plan, share * plan.full_budget).ahead[name])}"
            for share in SHOWN
        )
        lines.append(f"  {RIVALS[name]}{coupon}: {told}")
    if budget is not None:
        lines.append(f"the budget of {budget:,.0f} brings {_told(plan.gain_at(budget))}")
    lines.append(
        f"recommended: {plan.recommended:,.0f}, where the last unit still earns its cost; "
        f"it brings {_told(plan.recommended_gain)}"
    )
    return lines


def nearest(plan: BudgetPlan, budget: float) -> PlanPoint:
    """The point of the plan that is nearest to a budget."""
    return min(plan.points, key=lambda point: abs(point.budget - budget))


def plan_figure(plan: BudgetPlan, title: str, subtitle: str, unit: str) -> Figure:
    """Gain over budget with its 95% band and the rivals; below it, the mix of coupons."""
    figure = Figure(figsize=(8, 7), layout="constrained", dpi=110, facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.4])
    budgets = [point.budget for point in plan.points]
    gains = [point.gain for point in plan.points]
    above.fill_between(
        budgets, [g.lo for g in gains], [g.hi for g in gains], color=ACCENT, alpha=0.18, lw=0
    )
    above.plot(budgets, [g.value for g in gains], color=ACCENT, lw=2, label=plan.policy)
    for name, (dash, color) in zip(plan.points[-1].rivals, _LINES, strict=False):
        values = [point.rivals[name].value for point in plan.points]
        coupon = f" ({plan.rival_arms[name]})" if name in plan.rival_arms else ""
        label = name.replace("_", " ") + coupon
        above.plot(budgets, values, color=color, ls=dash, lw=1.4, label=label)
    if plan.full_budget:
        above.axvline(plan.recommended, color=INK, lw=1, ls=":", label="recommended")
    above.axhline(0, color="black", lw=0.8)
    above.set_ylabel(f"incremental profit, {unit}")
    above.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22)
    above.text(0, 1.02, subtitle, transform=above.transAxes, fontsize=8.5, color=MUTED)
    above.legend(fontsize=8, frameon=False)
    shares = [[point.mix[k] for point in plan.points] for k in range(len(plan.arms))]
    if shares:
        below.stackplot(budgets, shares, labels=list(plan.arms), alpha=0.85)
        below.legend(fontsize=8, frameon=False, ncols=min(len(plan.arms), 5), loc="upper left")
    below.set_ylabel("share of customers")
    below.set_xlabel(f"budget, {unit}")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def _named(name: str, e: Estimate) -> dict[str, float]:
    return {name: e.value, f"{name}_lo": e.lo, f"{name}_hi": e.hi}


def _told(e: Estimate, digits: int = 0) -> str:
    return f"{e.value:,.{digits}f} [{e.lo:,.{digits}f}, {e.hi:,.{digits}f}]"
