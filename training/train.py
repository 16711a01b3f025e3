"""One training from source to MLflow, and what it prints."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tqdm import tqdm

from features.config import Config
from features.errors import ConfigError
from features.frozen import fit_frozen
from features.sources import open_source
from features.spine import all_customers
from features.tables import Tables
from training.champion import History, fold_digest, incumbent
from training.dataset import Dataset, build_dataset
from training.diagnostics import Diagnostics, diagnose, diagnose_models, diagnose_weighted
from training.evaluate import Evaluation, evaluate
from training.explanation import Explanation, explain, explanation_summary
from training.fit import Models, fit_models
from training.gate import Evidence, Verdict, judge
from training.gate_steps import NOT_RUN
from training.guardrails import guardrails
from training.planning import planned
from training.responses import ResponseReport, response_reports
from training.second_seed import gain_again
from training.targets import check_targets
from training.value import NO_EFFECTS, Values, learn_values, value_bundle, value_summary
from training.value_panel import (
    Panel,
    Plan,
    build_panel,
    earliest,
    value_plans,
    value_targets,
)
from uplift.bundle import ScoringBundle
from uplift.errors import OfferError
from uplift.learners import make_learner
from uplift.offers import Offer, parse_offers
from uplift.scores import Estimate
from uplift.value import VALUE_TARGETS

PER = 1000
MOST_FEATURES = 20
INDENT = "  "


@dataclass(frozen=True)
class Training:
    """All that one training found out, before anything is logged."""

    tables: Tables
    dataset: Dataset
    models: Models
    before: Diagnostics
    diagnostics: Diagnostics
    evaluation: Evaluation
    explanation: Explanation
    verdict: Verdict
    reports: list[ResponseReport]
    values: Values


@dataclass(frozen=True)
class ValueTraining:
    """A training on transactions alone: customer value, and no effects."""

    tables: Tables
    panel: Panel
    values: Values
    bundle: ScoringBundle


def offers_of(config: Config) -> tuple[Offer, ...]:
    """The configured offers, or a ConfigError that names the key."""
    try:
        return parse_offers([offer.model_dump() for offer in config.offers])
    except OfferError as error:
        raise ConfigError(
            "offers",
            expected="known kinds with their parameters",
            found=str(error),
            remedy="See docs/coupons.md.",
        ) from None


def run(
    config: Config, progress: Callable[[str], None], history: History | None = None
) -> Training | ValueTraining:
    """Source -> features -> models -> evaluation -> gate; nothing is written to MLflow.

    `history` tells of the champion and of earlier uses of the test rows; without it, the gate
    judges as at the first training.

    A source without exposures shows no effects: then the value targets alone are learned, if the
    configuration names any.
    """
    check_targets(config.training.response_targets)
    offers = offers_of(config)
    if not offers and not value_targets(config):
        raise ConfigError(
            "offers",
            expected="at least one offer",
            found="none",
            remedy="List the coupons that the exposures name as arms.",
        )
    for name in config.training.learners:
        make_learner(name)
    tables = open_source(config).tables()
    for note in tables.notes:
        progress(note)
    progress(_counted(tables))
    plans = value_plans(tables, config)
    if plans and (tables.exposures is None or not offers):
        return _value_alone(tables, config, plans, progress)
    dataset = build_dataset(tables, config, offers, earliest(plans))
    progress(
        f"{len(dataset.training):,} exposures with a complete outcome, "
        f"{len(dataset.features) + len(dataset.given)} features"
        + (
            f"; {dataset.counts['open_windows']:,} windows still open, left out"
            if dataset.counts["open_windows"]
            else ""
        )
    )
    for note in dataset.notes:
        progress(note)
    customers = population(tables, config)
    before = diagnose(dataset, tables, config, customers)
    for check in before.of("warn"):
        progress(f"warning: {check.sentence()}")
    models = fit_models(dataset, config, offers, progress)
    # With estimated probabilities, balance is shown as it is after weighting by them too.
    diagnostics = diagnose_weighted(before, models.train, config) if dataset.estimated else before
    evaluation = evaluate(models, dataset, config, customers)
    chosen = evaluation.chosen
    diagnostics = diagnose_models(
        diagnostics,
        config,
        dataset.training.customer,
        models.is_test,
        chosen.name,
        chosen.oof,
        chosen.slope,
    )
    explanation = explain(models, dataset, evaluation, config)
    digest = fold_digest(dataset, models)
    champion = None if history is None else history.champion()
    verdict = judge(
        evaluation,
        models,
        dataset,
        config,
        Evidence(
            diagnostics,
            guardrails(tables, dataset, config),
            None
            if champion is None
            else incumbent(champion, tables, dataset, models, evaluation, config, utc_now()),
            1 if history is None else 1 + history.times_used(digest),
            lambda: timed(
                "another seed", lambda: gain_again(evaluation, models, dataset, config), progress
            ),
            digest,
        ),
    )
    verdict = planned(verdict, evaluation, models, config)
    reports = response_reports(dataset, models, config)
    values = Values()
    if plans:
        panel = build_panel(tables, config, plans, dataset.frozen)
        values = learn_values(panel, config, progress)
        verdict = replace(
            verdict,
            bundle=replace(verdict.bundle, values=values.models),
            challenger=replace(verdict.challenger, values=values.models),
        )
    return Training(
        tables,
        dataset,
        models,
        before,
        diagnostics,
        evaluation,
        explanation,
        verdict,
        reports,
        values,
    )


def utc_now() -> datetime:
    return datetime.now(UTC)


def timed(name: str, work: Callable[[], Estimate], progress: Callable[[str], None]) -> Estimate:
    """The result of `work`, with a line that says how long it took."""
    started = time.monotonic()
    result = work()
    progress(f"{name}: {time.monotonic() - started:.1f} s")
    return result


def _value_alone(
    tables: Tables,
    config: Config,
    plans: tuple[Plan, ...],
    progress: Callable[[str], None],
) -> ValueTraining:
    left = [t for t in config.training.response_targets if t not in VALUE_TARGETS]
    progress(NO_EFFECTS + (f"; left out: {', '.join(left)}" if left else ""))
    moment = earliest(plans)
    assert moment is not None
    panel = build_panel(tables, config, plans, fit_frozen(tables, moment, config))
    values = learn_values(panel, config, progress)
    return ValueTraining(tables, panel, values, value_bundle(panel, values, config))


def population(tables: Tables, config: Config) -> int:
    """Customers whom the budget is for: everyone seen before the moment of scoring."""
    return len(all_customers(tables, config.as_of(), config))


def _counted(tables: Tables) -> str:
    parts = []
    for name, counts in tables.counts.items():
        bad = counts.get("read", 0) - counts.get("kept", 0)
        parts.append(f"{name} {counts.get('kept', 0):,}" + (f" ({bad:,} set aside)" if bad else ""))
    return "rows: " + ", ".join(parts)


@contextmanager
def progress_lines(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal, plain lines with the time elsewhere."""
    started = time.monotonic()
    if sys.stdout.isatty():
        with tqdm(total=total, bar_format="{bar} {n_fmt}/{total_fmt} [{elapsed}] {desc}") as bar:

            def show(text: str) -> None:
                bar.set_description_str(text[:80])
                bar.update()

            yield show
    else:

        def line(text: str) -> None:
            print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

        yield line


def summary(training: Training, config: Config) -> str:
    """What the user reads at the end: leaderboard, effects, gate."""
    evaluation, verdict = training.evaluation, training.verdict
    money = config.currency
    out = [""]
    if training.tables.simulated:
        out.append("The shop is SIMULATED: these numbers say nothing about a real one.")
    kind = "OBSERVATIONAL" if training.dataset.estimated else "randomised"
    budget = evaluation.budget_per_row
    at = "no budget limit" if budget is None else f"a budget of {budget * PER:,.0f} {money}"
    out += [
        f"Leaderboard: incremental profit per {PER:,} exposures at {at}, {money}, 95% intervals "
        f"({kind} effects, {evaluation.rows:,} held-out exposures)",
        "",
        f"  {'learner':<34}{'validation (decides)':<28}{'held out':<28}{'calibration slope'}",
    ]
    for c in evaluation.candidates:
        mark = "*" if c is evaluation.chosen else " "
        out.append(
            f"{mark} {c.name:<34}{_interval(c.validation):<28}{_interval(c.value.gain):<28}"
            f"{c.slope.value:.2f} [{c.slope.lo:.2f}, {c.slope.hi:.2f}]"
        )
    if verdict.policy != evaluation.chosen.name:
        out.append(f"> {verdict.policy:<34}{'':<28}{_interval(verdict.value.gain):<28}")
    out += ["", f"  {evaluation.chosen.name} against its rivals, paired, on the held-out exposures"]
    for rival, difference in evaluation.chosen.against.items():
        arm = evaluation.rival_arms.get(rival)
        name = rival + (f" ({arm})" if arm else "")
        clear = "" if difference.lo > 0 or difference.hi < 0 else "  (cannot be told apart)"
        out.append(f"  {name:<62}{_interval(difference):<28}{clear}")
    out += ["", f"  average effect of each offer on profit, per {PER:,} customers"]
    out += [f"  {arm:<62}{_interval(e)}" for arm, e in evaluation.effects.items()]
    shown = [f"{name} {share:.1%}" for name, share in evaluation.importance.items() if share]
    if shown:
        out += ["", f"  what {evaluation.chosen.name} looks at, share of the predicted effects"]
        out += textwrap.wrap(
            ", ".join(shown[:MOST_FEATURES]), 96, initial_indent=INDENT, subsequent_indent=INDENT
        )
    out += explanation_summary(training.explanation, money, PER)
    out += ["", "Diagnostics", *_trust(training)]
    for r in training.reports:
        auc, ap, error = (r.metrics[m] for m in ("auc", "average_precision", "calibration_error"))
        out.append(
            f"\n  {r.target}, held out {r.held_out}: "
            f"AUC {auc.value:.3f} [{auc.lo:.3f}, {auc.hi:.3f}], "
            f"average precision {ap.value:.3f} (base rate {r.metrics['base_rate'].value:.3f}), "
            f"calibration error {error.value:.3f}"
        )
    out += value_summary(training.values)
    out += gate_summary(verdict)
    return "\n".join(out)


def gate_summary(verdict: Verdict) -> list[str]:
    """Lines for the end of a training: the steps of the chosen learner, and of the fallbacks what
    decided about each."""
    out = ["", "Gate: one-sided bounds on held-out customers, money per 1,000 exposures"]
    candidates = list(dict.fromkeys(step.candidate for step in verdict.steps))
    for i, candidate in enumerate(candidates):
        steps = [step for step in verdict.steps if step.candidate == candidate]
        failed = [step for step in steps if not step.passed]
        out.append(f"  {candidate}: {'not passed' if failed else 'passed'}")
        for step in steps if i == 0 else failed or [s for s in steps if s.number == 4]:
            if step.outcome != NOT_RUN:
                text = f"{step.number} {step.outcome:<8} {step.test}: {step.text}"
                out += textwrap.wrap(text, 98, initial_indent="   ", subsequent_indent=" " * 14)
        left = ", ".join(f"{s.test} ({s.text})" for s in steps if s.outcome == NOT_RUN)
        if left and i == 0:
            text = f"not run: {left}"
            out += textwrap.wrap(text, 98, initial_indent="     ", subsequent_indent=" " * 14)
    return out


def _trust(training: Training) -> list[str]:
    """Every diagnostic with what came of it; before and after where arms were not drawn."""
    told = []
    for check in training.diagnostics.checks:
        text = f"{check.outcome:<8} {check.sentence()}"
        told += textwrap.wrap(text, 96, initial_indent=INDENT, subsequent_indent=" " * 11)
    if not training.dataset.estimated:
        return told
    worst = {
        when: max(d.balance, key=lambda b: abs(b.difference), default=None)
        for when, d in (("before", training.before), ("after", training.diagnostics))
    }
    shown = {
        when: "none" if b is None else f"{b.difference:+.3f} ({b.feature}, {b.arm})"
        for when, b in worst.items()
    }
    return [
        *told,
        f"  largest standardised difference to control: {shown['before']}; after weighting "
        f"by the estimated assignment {shown['after']}",
    ]


def _interval(e: Estimate) -> str:
    return f"{e.value * PER:8.1f} [{e.lo * PER:.1f}, {e.hi * PER:.1f}]"
