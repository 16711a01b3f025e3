"""Can the experiment be trusted, and does it suffice? Every check by name, with its number, its
threshold and what follows: nothing, a warning, or no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.config import Config
from features.errors import ConfigError, DataError
from features.tables import Tables
from training.arm_evidence import arm_checks
from training.dataset import Dataset
from uplift.data import BoolArray, FloatArray, IntArray, TrainingSet, stream
from uplift.diagnostics import (
    NOT_RUN,
    PASS,
    SIGNIFICANCE,
    STOP,
    WARN,
    Balance,
    Check,
    Outcome,
    balance,
    draw_units,
    judge_balance,
    placebo,
    srm,
)
from uplift.leaks import arm_classifier, leak_scan
from uplift.measurement import customers_needed
from uplift.scores import Estimate

LEAST_PROBABILITY = 0.01
INSIDE, OUTSIDE_SHARE = (0.1, 0.9), 0.01
ROWS_PER_ARM = 100
# Twice one-sided .05, the level of the gate.
GATE_ALPHA, POWER = 0.10, 0.80
BEFORE = ("spend_90d", "spend_28d", "spend_30d", "spend_365d", "spend_total")

REMEDIES = {
    "sample ratio": "Someone was dropped or counted twice after the draw; find out before "
    "believing any effect. If the design is wrong, mend experiment.assignment.",
    "balance": "Leave out columns that were written down after the assignment; if there are none, "
    "find out who is missing from an arm.",
    "placebo": "The arms differed before the offers; find out how they were drawn.",
    "two-sample classifier": "The arms differ in their customers; find out how they were drawn.",
    "leak scan": "Leave out features that were written down after the outcome.",
    "redemptions by arm": "Join the exposures to what was sent once more; a coupon that "
    "customers also get elsewhere needs an id of its own here.",
    "costs of control": "Join the exposures to what was sent once more.",
    "logged probabilities": "Mend experiment.assignment, or the join of the exposures' arms.",
    "both sides": "Name a column in experiment.cluster that is the same in all rows of a customer.",
}


@dataclass(frozen=True)
class Diagnostics:
    """srm_p: p-value of the sample ratio test (None where probabilities were estimated from the
    arms themselves); overlap: smallest probability of an arm that could be drawn; checks: all that
    were made, in the order in which they are told."""

    srm_p: float | None
    srm_statistic: float | None
    balance: tuple[Balance, ...]
    overlap: float
    checks: tuple[Check, ...] = ()

    def check(self, name: str) -> Check:
        """The check of this name (KeyError where it was not made)."""
        return {check.name: check for check in self.checks}[name]

    def of(self, outcome: Outcome) -> list[Check]:
        """The checks that came out so."""
        return [check for check in self.checks if check.outcome == outcome]

    def adding(self, checks: Sequence[Check]) -> Diagnostics:
        """The same, with these checks in place of those of the same names, or behind all."""
        new = {check.name: check for check in checks}
        kept = tuple(new.pop(check.name, check) for check in self.checks)
        return replace(self, checks=(*kept, *new.values()))


def diagnose(dataset: Dataset, tables: Tables, config: Config, population: int) -> Diagnostics:
    """All that can be told before anything is fitted; raises DataError where a check stops.

    population: customers whom the budget is for. `training.accept_checks` turns the stop of the
    checks that it names into a warning.
    """
    unknown = sorted(set(config.training.accept_checks) - set(REMEDIES))
    if unknown:
        raise ConfigError(
            "training.accept_checks",
            expected=f"checks that can stop a training: {', '.join(REMEDIES)}",
            found=", ".join(unknown),
            remedy="Name the check as the training's message does.",
        )
    data = dataset.training
    rng = stream(config.training.seed, "diagnostics")
    unit = draw_units(data)
    statistic = p = None
    checks: list[Check] = []
    if not dataset.estimated:
        statistic, p = srm(data, unit)
        checks.append(_sample_ratio(data, unit, dataset.campaign, statistic, p))
    compared, differences = _comparison(data, unit, config, not dataset.estimated, rng)
    checks += [
        *compared,
        leak_scan(data, rng),
        *arm_checks(tables, dataset, config),
        _one_side(data.customer, data.cluster, "units of randomisation (experiment.cluster)"),
        _rows_per_arm(data),
        _size(data, config, population),
    ]
    possible = np.where(data.assignment > 0, data.assignment, np.inf)
    return settle(
        Diagnostics(p, statistic, differences, float(possible.min()), tuple(checks)), config
    )


def diagnose_weighted(before: Diagnostics, data: TrainingSet, config: Config) -> Diagnostics:
    """The comparison of the arms anew, on rows (`data`) with estimated probabilities."""
    rng = stream(config.training.seed, "diagnostics after weighting")
    checks, differences = _comparison(data, draw_units(data), config, False, rng)
    possible = np.where(data.assignment > 0, data.assignment, np.inf)
    after = replace(before, balance=differences, overlap=float(possible.min()))
    return settle(after.adding(checks), config)


def diagnose_models(
    before: Diagnostics,
    config: Config,
    customer: np.ndarray[tuple[int], np.dtype[np.object_]],
    is_test: BoolArray,
    learner: str,
    effects: FloatArray,
    slope: Estimate,
) -> Diagnostics:
    """What only the fitted models show: customers on both sides of the split, and effects (n, K)
    of the chosen learner that do not vary. `slope`: of its calibration on the test rows."""
    sides = _one_side(customer, is_test.astype(np.int64), "sides of the split")
    return settle(before.adding([sides, _variety(learner, effects, slope)]), config)


def settle(found: Diagnostics, config: Config) -> Diagnostics:
    """Raise DataError for the checks that stop; those that the configuration accepts only warn."""
    accepted = set(config.training.accept_checks)
    checks = tuple(
        replace(c, outcome=WARN, text=f"{c.text} (accepted by training.accept_checks)")
        if c.outcome == STOP and c.name in accepted
        else c
        for c in found.checks
    )
    stops = [c for c in checks if c.outcome == STOP]
    if stops:
        raise DataError(
            " and ".join(c.name for c in stops),
            expected="data in which the arms can be compared",
            found="; ".join(c.text for c in stops),
            remedy=" ".join(REMEDIES[c.name] for c in stops)
            + " To train all the same, on the record: training.accept_checks.",
        )
    return replace(found, checks=checks)


def _comparison(
    data: TrainingSet,
    unit: IntArray,
    config: Config,
    randomised: bool,
    rng: np.random.Generator,
) -> tuple[list[Check], tuple[Balance, ...]]:
    """Balance, placebo, classifier, overlap. Where nobody drew the arms, they never stop."""
    differences = balance(data, unit)
    checks = [
        judge_balance(differences, randomised),
        _placebo(data, unit),
        arm_classifier(data, unit, rng, config.training.seed, config.training.threads)[1],
        _overlap(data, randomised),
    ]
    if not randomised:
        checks = [replace(c, outcome=WARN) if c.outcome == STOP else c for c in checks]
    return checks, differences


def _sample_ratio(
    data: TrainingSet,
    unit: IntArray,
    campaign: np.ndarray[tuple[int], np.dtype[np.object_]],
    statistic: float,
    p: float,
) -> Check:
    """All campaigns together, and each of several by itself: departures must not cancel."""
    name = "sample ratio"
    tests = {"": p}
    names = np.unique(campaign)
    for one in names if len(names) > 1 else ():
        rows = campaign == one
        tests[str(one)] = srm(data.rows(rows), unit[rows])[1] if _has_control(data, rows) else 1.0
    if max(statistic, 0.0) < 1e-9 and all(q > 1 - 1e-9 for q in tests.values()):
        text = "no design is given, the shares are taken as found (experiment.assignment gives it)"
        return Check(name, NOT_RUN, None, SIGNIFICANCE, text)
    threshold = SIGNIFICANCE / len(tests)
    where = min(tests, key=lambda c: tests[c])
    rows = campaign == where if where else np.ones(len(data), dtype=bool)
    shares = np.bincount(data.arm[rows], minlength=data.n_arms + 1) / rows.sum()
    told = f"p = {tests[where]:.2g}" + (f" in campaign {where}" if where else "")
    if tests[where] >= threshold:
        several = f", the least of {len(names)} campaigns" if where else ""
        text = f"p = {p:.2g}" + (f" ({tests[where]:.2g} in {where}{several})" if where else "")
        return Check(name, PASS, tests[where], threshold, text)
    design = data.assignment[rows].mean(axis=0)
    text = (
        f"sample ratio mismatch: arms {_named(data, shares)}, by the design "
        f"{_named(data, design)}, {told}"
    )
    order = np.argsort(-np.abs(shares / np.maximum(design, 1e-9) - 1), kind="stable")
    culprits = tuple(("control", *data.arms)[k] for k in order)
    return Check(name, STOP, tests[where], threshold, text, culprits)


def _has_control(data: TrainingSet, rows: BoolArray) -> bool:
    return bool((data.arm[rows] == 0).any())


def _named(data: TrainingSet, shares: FloatArray) -> str:
    names = ["control", *data.arms]
    return ", ".join(f"{a} {s:.4f}" for a, s in zip(names, shares, strict=True))


def _placebo(data: TrainingSet, unit: IntArray) -> Check:
    numeric = [n for n in data.schema.names if n not in data.schema.levels]
    found = [n for n in BEFORE if n in numeric]
    found += [n for n in numeric if n.startswith("spend")]
    if not found:
        text = "no feature tells the spend before the assignment"
        return Check("placebo", NOT_RUN, None, None, text)
    column = data.X[:, data.schema.names.index(found[0])].astype(np.float64)
    return placebo(data, unit, column, found[0])


def _overlap(data: TrainingSet, randomised: bool) -> Check:
    """Randomised: the least probability of an arm that could be drawn. Otherwise: the share of
    rows in which an arm against control is all but certain (Crump et al. 2009)."""
    name = "overlap"
    if randomised:
        low = np.where(data.assignment > 0, data.assignment, np.inf).min(axis=0)
        least = int(np.argmin(low))
        number = float(low[least])
        text = f"least probability of an arm that could be drawn {number:.4f}"
        if number >= LEAST_PROBABILITY:
            return Check(name, PASS, number, LEAST_PROBABILITY, text)
        arm = ("control", *data.arms)[least]
        return Check(name, WARN, number, LEAST_PROBABILITY, f"{text} ({arm})", (arm,))
    e, e_0 = data.assignment[:, 1:], data.assignment[:, :1]
    against = e / np.maximum(e + e_0, 1e-300)
    outside = (e > 0) & ((against < INSIDE[0]) | (against > INSIDE[1]))
    share = float(outside.any(axis=1).mean())
    arms = outside.mean(axis=0)
    culprits = tuple(data.arms[k] for k in np.argsort(-arms, kind="stable") if arms[k])
    text = (
        f"in {share:.1%} of the exposures an arm has a probability outside {INSIDE[0]} to "
        f"{INSIDE[1]} against control"
    )
    if share <= OUTSIDE_SHARE:
        return Check(name, PASS, share, OUTSIDE_SHARE, text, culprits)
    text += f" ({', '.join(culprits)}); without them {len(data) - int(outside.any(1).sum()):,} stay"
    return Check(name, WARN, share, OUTSIDE_SHARE, text, culprits)


def _one_side(
    customer: np.ndarray[tuple[int], np.dtype[np.object_]], side: IntArray, sides: str
) -> Check:
    """Does every customer stand in one `side` (n,) only?"""
    name = "both sides"
    names, code = _codes(customer)
    low = np.full(len(names), np.iinfo(np.int64).max)
    high = np.full(len(names), -1)
    np.minimum.at(low, code, side)
    np.maximum.at(high, code, side)
    torn = np.flatnonzero(low != high)
    if not len(torn):
        return Check(name, PASS, 0.0, 0.0, f"every customer stands in one of the {sides}")
    culprits = tuple(str(names[i]) for i in torn[:5])
    text = f"{len(torn):,} customers stand in several {sides} (for example {', '.join(culprits)})"
    return Check(name, STOP, float(len(torn)), 0.0, text, culprits)


def _codes(
    values: np.ndarray[tuple[int], np.dtype[np.object_]],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.object_]], IntArray]:
    import pandas as pd

    code, names = pd.factorize(values)
    return np.asarray(names, dtype=object), np.asarray(code, dtype=np.int64)


def _rows_per_arm(data: TrainingSet) -> Check:
    counts = np.bincount(data.arm, minlength=data.n_arms + 1)
    names = ("control", *data.arms)
    few = tuple(names[k] for k in np.argsort(counts, kind="stable") if counts[k] < ROWS_PER_ARM)
    least = int(counts.argmin())
    text = f"fewest exposures: {counts[least]:,} ({names[least]}); control {counts[0]:,}"
    outcome: Outcome = WARN if few else PASS
    return Check("rows per arm", outcome, float(counts[least]), ROWS_PER_ARM, text, few)


def _size(data: TrainingSet, config: Config, population: int) -> Check:
    """Would the held-out customers show that the budget earns as much as it costs?

    A policy that spends B / population per customer on an arm of mean cost c reaches a share q of
    them. Should each unit spent bring a unit of profit on top, the gain per customer is q c, its
    variance about q times that of the arm's effect, so q times fewer than `customers_needed` for
    c alone see it: N(c) / q; the gate sees only `training.test_share` of all. The arm that
    needs the fewest counts.
    """
    name = "size"
    budget = config.policy.budget
    if budget is None:
        return Check(name, NOT_RUN, None, None, "no budget is set that would have to earn itself")
    needed: dict[str, float] = {}
    control = data.reward[data.arm == 0]
    for k, arm in enumerate(data.arms, start=1):
        rows = data.arm == k
        cost = float(data.cost[rows].mean())
        if rows.sum() < 2 or len(control) < 2 or cost <= 0:
            continue
        reached = min(1.0, budget / max(1, population) / cost)
        deviations = float(data.reward[rows].std()), float(control.std())
        shares = float(rows.mean()), len(control) / len(data)
        if reached <= 0 or max(deviations) == 0:
            continue
        enough = customers_needed(cost, *deviations, *shares, alpha=GATE_ALPHA, power=POWER)
        needed[arm] = enough / reached / config.training.test_share
    if not needed:
        return Check(name, NOT_RUN, None, None, "no offer has a cost that it would have to earn")
    arm = min(needed, key=lambda a: needed[a])
    customers = len(np.unique(data.cluster))
    enough = int(np.ceil(needed[arm] * customers / len(data)))
    text = (
        f"{customers:,} customers with {len(data):,} exposures; {enough:,} customers would show "
        f"with {POWER:.0%} probability that a budget spent on {arm} earns itself back once over"
    )
    outcome: Outcome = WARN if customers < enough else PASS
    return Check(name, outcome, float(customers), float(enough), text, (arm,) * (outcome == WARN))


def _variety(learner: str, effects: FloatArray, slope: Estimate) -> Check:
    """Do the chosen learner's effects differ between customers, and do the test rows agree?"""
    name = "constant effect"
    spread = float(effects.std(axis=0).max()) if len(effects) else 0.0
    if spread <= 1e-12:
        text = f"{learner} sees the same effect in every customer: nobody to prefer"
        return Check(name, WARN, spread, 0.0, text)
    text = (
        f"the effects of {learner} vary between customers by {spread:.4g} (standard deviation); "
        f"held-out customers follow them with slope {slope.value:.2f} [{slope.lo:.2f}, "
        f"{slope.hi:.2f}]"
    )
    if slope.bound <= 0:
        return Check(name, WARN, spread, 0.0, text + ": it is not shown that effects differ")
    return Check(name, PASS, spread, 0.0, text)
