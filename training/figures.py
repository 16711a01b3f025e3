"""Figures of one training, drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rcdefaults
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.diagnostics import Diagnostics
from training.evaluate import Candidate, Evaluation
from training.explanation import Explanation
from training.gate import Verdict
from training.responses import ResponseReport
from training.value import ValueReport
from uplift.evaluation import NO_OFFER, RANDOM, RIVALS, random_policy
from uplift.scores import Estimate

INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99ae"
PER = 1000


def all_figures(
    evaluation: Evaluation,
    verdict: Verdict,
    before: Diagnostics,
    after: Diagnostics,
    reports: Sequence[ResponseReport],
    values: Sequence[ValueReport],
    currency: str,
    subtitle: str,
) -> Mapping[str, Figure]:
    """File name -> figure."""
    # Importing causalml changes matplotlib's defaults for the whole process; undo it.
    rcdefaults()
    figures = {
        "leaderboard.png": leaderboard(evaluation, verdict, currency, subtitle),
        "qini_over_cost.png": gain_over_cost(evaluation, currency, subtitle),
        "qini.png": over_share(evaluation.chosen, "qini", currency, subtitle),
        "toc.png": over_share(evaluation.chosen, "toc", currency, subtitle),
        "uplift_by_decile.png": deciles(evaluation.chosen, currency, subtitle),
        "effect_calibration.png": calibration(evaluation.chosen, currency, subtitle),
        "features.png": features(evaluation, subtitle),
        "gate.png": gate_table(verdict, subtitle),
        "balance.png": balance(before, "Balance of the arms before assignment", subtitle),
    }
    if after.balance is not before.balance:
        title = "Balance after weighting by the estimated assignment"
        figures["balance_weighted.png"] = balance(after, title, subtitle)
    for report in reports:
        name = f"{report.target}_{report.held_out.replace(' ', '_')}.png"
        figures[name] = response(report, subtitle)
    return {**figures, **value_figures(values, subtitle)}


def value_figures(values: Sequence[ValueReport], subtitle: str) -> Mapping[str, Figure]:
    """File name -> figure: predicted and observed by decile of the prediction, per target."""
    figures = {}
    for report in values:
        title = f"{report.target} in {report.plan.days} days, held-out time ({report.served})"
        figure, axes = _axes(title, subtitle)
        _by_decile(axes, report.deciles)
        axes.set_ylabel("rate" if report.unit == "probability" else report.unit)
        figures[f"{report.target}.png"] = figure
    return figures


def _axes(title: str, subtitle: str, width: float = 8, height: float = 4.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110, facecolor="white")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8.5, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _error(estimate: Estimate) -> float:
    return (estimate.hi - estimate.value) * PER


def _told(estimate: Estimate) -> str:
    value, lo, hi = (v * PER for v in (estimate.value, estimate.lo, estimate.hi))
    return f"{value:,.0f} [{lo:,.0f}, {hi:,.0f}]"


def leaderboard(evaluation: Evaluation, verdict: Verdict, currency: str, subtitle: str) -> Figure:
    """Gain at the budget on held-out customers, learners and rivals, with 95% intervals."""
    rows: list[tuple[str, Estimate, str]] = [
        (c.name, c.value.gain, ACCENT if c is evaluation.chosen else INK)
        for c in evaluation.candidates
    ]
    if verdict.policy != evaluation.chosen.name:
        rows.append((verdict.policy, verdict.value.gain, ACCENT))
    rows += [(n, v.gain, MUTED) for n, v in evaluation.rivals.items() if n != NO_OFFER]
    figure, axes = _axes(
        "What each policy earns at the budget", subtitle, height=1.6 + 0.38 * len(rows)
    )
    for i, (_, estimate, colour) in enumerate(reversed(rows)):
        axes.errorbar(
            estimate.value * PER, i, xerr=_error(estimate), fmt="o", color=colour, capsize=3
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"incremental profit per {PER:,} exposures, {currency}, 95% interval")
    return figure


def gain_over_cost(evaluation: Evaluation, currency: str, subtitle: str) -> Figure:
    """What every budget brings, by each learner's choice of customers and arms; the rivals at the
    configured budget."""
    figure, axes = _axes("Incremental profit over what the offers cost", subtitle)
    for c in evaluation.candidates:
        chosen = c is evaluation.chosen
        rows = c.gains.curve()
        cost, gain, lo, hi = (
            np.array([row[key] for row in rows]) * PER for key in ("budget", "value", "lo", "hi")
        )
        colour = ACCENT if chosen else None
        width = 2.2 if chosen else 1.1
        axes.plot(
            cost, gain, label=c.name, linewidth=width, color=colour, zorder=3 if chosen else 2
        )
        if chosen:
            axes.fill_between(cost, lo, hi, color=ACCENT, alpha=0.12, linewidth=0)
    p, scored = evaluation.predictions, evaluation.scored
    everyone = random_policy(p, None)
    at_random = scored.value(RANDOM, everyone, p.cost)
    axes.plot(
        [0, at_random.predicted_spend * PER],
        [0, at_random.gain.value * PER],
        "--",
        color=MUTED,
        label="at random",
    )
    for name, value in evaluation.rivals.items():
        if name in RIVALS:
            place = (value.predicted_spend * PER, value.gain.value * PER)
            axes.plot(*place, "x", color=MUTED)
            axes.annotate(
                name, place, fontsize=7, color=MUTED, xytext=(4, -3), textcoords="offset points"
            )
    if evaluation.budget_per_row is not None:
        at = evaluation.budget_per_row * PER
        axes.axvline(at, color=INK, linewidth=0.8, linestyle=":")
        axes.text(at, axes.get_ylim()[1], " budget", fontsize=8, color=INK, va="top")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"expected cost per {PER:,} exposures, {currency}")
    axes.set_ylabel(f"incremental profit per {PER:,}, {currency}")
    axes.legend(fontsize=8, frameon=False)
    return figure


def over_share(candidate: Candidate, kind: str, currency: str, subtitle: str) -> Figure:
    """`qini`: what offers to the first share of the ranking bring; `toc`: how much more the first
    share gains than all. With 95% intervals; a ranking that says nothing is a straight line."""
    title, label = {
        "qini": (
            "What reaching the most responsive customers first brings",
            f"incremental profit per {PER:,} customers in all, {currency}",
        ),
        "toc": (
            "How much more the first customers gain than the average one",
            f"effect per {PER:,} of them above the average, {currency}",
        ),
    }[kind]
    figure, axes = _axes(f"{title} ({candidate.name})", subtitle)
    rows = candidate.report.curves[kind]
    share = np.array([row["q"] for row in rows]) * 100
    value, lo, hi = (np.array([row[key] for row in rows]) * PER for key in ("value", "lo", "hi"))
    axes.plot(share, value, color=ACCENT, linewidth=2, label="ranked by predicted effect")
    axes.fill_between(share, lo, hi, color=ACCENT, alpha=0.12, linewidth=0, label="95% interval")
    if kind == "qini":
        axes.plot([0, 100], [0, value[-1]], "--", color=MUTED, label="at random")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("customers reached, % of all, highest predicted effect first")
    axes.set_ylabel(label)
    axes.legend(fontsize=8, frameon=False)
    return figure


def deciles(candidate: Candidate, currency: str, subtitle: str) -> Figure:
    """Measured effect of the recommended offer by tenth of the predicted effect."""
    figure, axes = _axes(
        f"Measured effect by decile of predicted effect ({candidate.name})", subtitle
    )
    part = [row["part"] for row in candidate.report.deciles]
    value = np.array([row["value"] for row in candidate.report.deciles])
    half = np.array([row["hi"] for row in candidate.report.deciles]) - value
    axes.bar(part, value, color=INK, alpha=0.85, label="measured, 95% interval")
    axes.errorbar(part, value, yerr=half, fmt="none", ecolor=MUTED, capsize=3)
    axes.plot(
        part,
        [r["predicted"] for r in candidate.report.deciles],
        "o-",
        color=ACCENT,
        label="predicted",
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(part)
    axes.set_xlabel("decile, highest predicted effect first")
    axes.set_ylabel(f"incremental profit per customer, {currency}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def calibration(candidate: Candidate, currency: str, subtitle: str) -> Figure:
    """Predicted against measured effect; on the diagonal when calibrated."""
    slope = candidate.slope
    figure, axes = _axes(
        f"Calibration of the effect ({candidate.name}): slope {slope.value:.2f} "
        f"[{slope.lo:.2f}, {slope.hi:.2f}]",
        subtitle,
    )
    predicted = np.array([row["predicted"] for row in candidate.report.deciles])
    value = np.array([row["value"] for row in candidate.report.deciles])
    half = np.array([row["hi"] for row in candidate.report.deciles]) - value
    axes.errorbar(predicted, value, yerr=half, fmt="o", color=INK, capsize=3)
    low, high = float(predicted.min()), float(predicted.max())
    axes.plot([low, high], [low, high], "--", color=ACCENT, label="calibrated")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"predicted incremental profit, {currency}")
    axes.set_ylabel(f"measured incremental profit, {currency}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def balance(diagnostics: Diagnostics, title: str, subtitle: str, most: int = 30) -> Figure:
    """Standardised differences to control, the largest features."""
    worst: dict[str, float] = {}
    for b in diagnostics.balance:
        worst[b.feature] = max(worst.get(b.feature, 0.0), abs(b.difference))
    names = sorted(worst, key=lambda n: worst[n])[-most:]
    figure, axes = _axes(title, subtitle, height=1.6 + 0.24 * max(4, len(names)))
    arms = sorted({b.arm for b in diagnostics.balance})
    place = {name: i for i, name in enumerate(names)}
    for arm in arms:
        points = [
            (b.difference, place[b.feature])
            for b in diagnostics.balance
            if b.arm == arm and b.feature in place
        ]
        axes.plot([p[0] for p in points], [p[1] for p in points], "o", markersize=4, label=arm)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("standardised difference to control")
    axes.legend(frameon=False, fontsize=8)
    return figure


def features(evaluation: Evaluation, subtitle: str, most: int = 20) -> Figure:
    """The features that the chosen learner looks at, by their share in its predicted effects."""
    shares = list(evaluation.importance.items())[:most][::-1]
    title = f"What {evaluation.chosen.name} looks at: the {len(shares)} features that matter most"
    figure, axes = _axes(title, subtitle, height=1.6 + 0.24 * max(4, len(shares)))
    axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=INK)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("share of the predicted effects, % (change when the feature is shuffled)")
    return figure


def gate_table(verdict: Verdict, subtitle: str) -> Figure:
    """Every step of every candidate with its outcome and numbers."""
    colours = {"pass": INK, "fail": ACCENT}
    lines = [(s, textwrap.wrap(s.text, 116)) for s in verdict.steps]
    rows = sum(len(wrapped) for _, wrapped in lines) + len({s.candidate for s in verdict.steps})
    outcome = "new champion" if verdict.promote else "no new champion"
    height = 1.2 + 0.19 * rows
    figure, axes = _axes(f"The gate: {outcome}, {verdict.policy}", subtitle, 12, height)
    axes.set_axis_off()
    axes.set_ylim(rows, -0.5)
    axes.set_xlim(0, 1)
    at, candidate = 0, ""
    for step, wrapped in lines:
        if step.candidate != candidate:
            candidate = step.candidate
            axes.text(0, at, candidate, fontsize=9, fontweight="bold", color=INK, va="center")
            at += 1
        colour = colours.get(step.outcome, MUTED)
        axes.text(0.01, at, str(step.number), fontsize=8, color=colour, va="center")
        axes.text(0.03, at, step.outcome, fontsize=8, color=colour, va="center", fontweight="bold")
        axes.text(0.09, at, step.test[:44], fontsize=8, color=INK, va="center")
        for text in wrapped:
            axes.text(0.33, at, text, fontsize=8, color=INK, va="center")
            at += 1
    return figure


def segment_figure(explanation: Explanation, currency: str, subtitle: str) -> Figure:
    """The segments in words, with the measured effect of every offer in each; the one that the
    rule sends stands out."""
    found = explanation.segments[::-1]
    arms = list(dict.fromkeys(arm for segment in found for arm in segment.effects))
    step = 1 / (len(arms) + 1)
    heading, words = [], [textwrap.wrap(segment.who, 44) for segment in found]
    for segment, lines in zip(found, words, strict=True):
        heading.append("\n".join([*lines, f"{segment.share:.0%}: {segment.offer}"]))
    rows = sum(max(len(lines) + 1, len(arms) + 1) for lines in words)
    figure, axes = _axes(
        "Who gets what, as a rule of a few sentences", subtitle, width=9, height=2.2 + 0.24 * rows
    )
    for i, segment in enumerate(found):
        if i:
            axes.axhline(i - 0.5, color=MUTED, linewidth=0.5)
        for j, arm in enumerate(reversed(arms)):
            effect = segment.effects.get(arm)
            if effect is None:
                continue
            sent = arm == segment.offer
            place, colour = i + (j + 1) * step - 0.5, ACCENT if sent else MUTED
            axes.errorbar(
                effect.value * PER, place, xerr=_error(effect), fmt="o", color=colour, capsize=3
            )
            axes.annotate(
                arm,
                (effect.hi * PER, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold" if sent else "normal",
                color=colour,
            )
    axes.set_yticks(range(len(found)), heading, fontsize=9)
    axes.set_ylim(-0.5, len(found) - 0.5)
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="black", linewidth=0.8)
    tree, model = explanation.value.gain, explanation.model.value.gain
    axes.set_xlabel(
        f"effect on profit per {PER:,} exposures in the segment, {currency}, 95% interval "
        "(red: what the rule sends)\n"
        f"the whole rule earns {_told(tree)} per {PER:,}, {explanation.model.name} {_told(model)}",
        fontsize=8.5,
        loc="right",
    )
    return figure


def response(report: ResponseReport, subtitle: str) -> Figure:
    """Predicted and observed rate by decile of the prediction."""
    auc = report.metrics["auc"]
    figure, axes = _axes(
        f"{report.target}, held out: {report.held_out} (AUC {auc.value:.3f} "
        f"[{auc.lo:.3f}, {auc.hi:.3f}])",
        subtitle,
    )
    _by_decile(axes, report.deciles)
    axes.set_ylabel("rate")
    return figure


def _by_decile(axes: Axes, rows: list[dict[str, float]]) -> None:
    part = [row["part"] for row in rows]
    axes.bar(part, [row["observed"] for row in rows], color=INK, label="observed")
    axes.plot(part, [row["predicted"] for row in rows], "o-", color=ACCENT, label="predicted")
    axes.set_xticks(part)
    axes.set_xlabel("decile, highest prediction first")
    axes.legend(frameon=False, fontsize=8)
