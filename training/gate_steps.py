"""The single tests of the gate, each with its number, threshold and outcome.

pass     shown
fail     not shown: the candidate does not become champion
unclear  neither shown nor refuted, for tests that only ask whether something is out of order
not run  there is nothing to test with
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from scipy.special import ndtr

from features.config import GateConfig
from training.diagnostics import Diagnostics
from training.evaluate import Candidate
from training.fit import Models
from training.guardrails import Guardrail, change
from training.responses import auc, calibration
from uplift.bundle import ScoringBundle, load_bundle
from uplift.data import FloatArray
from uplift.diagnostics import PASS, WARN
from uplift.errors import BundleError
from uplift.measurement import benjamini_hochberg
from uplift.scores import Estimate, from_influence

Outcome = Literal["pass", "fail", "unclear", "not run"]
FAIL: Final = "fail"
UNCLEAR: Final = "unclear"
NOT_RUN: Final = "not run"

PER = 1000
SLOPES = (0.8, 1.25)
RATIOS = (0.95, 1.05)
FALSE_SHARE = 0.10
MIN_CLASS = 10


@dataclass(frozen=True)
class Step:
    """One test of a candidate. `number` of the gate's steps; `value` and its one-sided `bound`
    beside `threshold`, where the test has such numbers."""

    number: int
    candidate: str
    test: str
    outcome: Outcome
    text: str
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None

    @property
    def passed(self) -> bool:
        """Nothing in the way of the candidate."""
        return self.outcome != FAIL

    def sentence(self) -> str:
        return f"{self.number} {self.candidate}, {self.test}: {self.text}; {self.outcome}"

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def money_step(
    candidate: str,
    test: str,
    gain: Estimate,
    alpha: float,
    currency: str,
    margin: float | None = None,
) -> Step:
    """A difference in profit per row: above 0, or with a margin not below minus that."""
    bound = gain.lower(alpha)
    least = 0.0 if margin is None else 0.0 - margin
    fine = bound > 0 if margin is None else bound >= least
    wanted = "> 0" if margin is None else f">= {least * PER:.1f}"
    text = (
        f"{gain.value * PER:+.1f} {currency} per {PER:,}, lower bound {bound * PER:+.1f} "
        f"(needs {wanted})"
    )
    return Step(4, candidate, test, PASS if fine else FAIL, text, gain.value, bound, least)


def data_step(
    candidate: str, diagnostics: Diagnostics | None, observational: bool, accepted: bool
) -> Step:
    """Whatever stops a training has stopped it before; warnings are told. The number counts what
    is left to stop the candidate: observational effects that nobody accepted."""
    checks = () if diagnostics is None else diagnostics.checks
    warns = [c.name for c in checks if c.outcome == WARN]
    text = f"{sum(c.outcome == PASS for c in checks)} checks pass"
    text += f", {len(warns)} warn ({', '.join(warns)})" if warns else ""
    if observational:
        text += "; arms were not drawn: the effects are observational"
        text += ", accepted by training.accept_observational" if accepted else ""
    elif diagnostics is None:
        return Step(1, candidate, "data", NOT_RUN, "no diagnostics were made")
    refused = observational and not accepted
    outcome: Outcome = FAIL if refused else PASS
    return Step(1, candidate, "data", outcome, text, float(refused), threshold=0.0)


def response_step(candidate: str, models: Models, alpha: float) -> Step:
    """P(conversion | control) on the held-out control rows: it ranks (AUC above .5), its slope on
    the log-odds is within SLOPES, and predicted over actual rate meets RATIOS."""
    test, name = models.test, "response model"
    rows = np.flatnonzero(test.arm == 0)
    y, cluster = test.converted[rows], test.cluster[rows]
    if min(y.sum(), len(y) - y.sum()) < MIN_CLASS:
        return Step(2, candidate, name, NOT_RUN, f"{int(y.sum())} conversions among {len(y)} rows")
    p = models.response.model.predict(test.X[rows], models.outcome.settings.threads)
    ranks = auc(y, p, cluster)
    slope, _ = calibration(y, p, cluster)
    rate = float(y.mean())
    over = float(p.mean()) / rate
    ratio = from_influence(over, (p - over * y) / rate, cluster)
    bound = ranks.lower(alpha)
    bad = bound <= 0.5 or not _meets(ratio, RATIOS) or not _meets(slope, SLOPES)
    sure = SLOPES[0] <= slope.value <= SLOPES[1]
    text = (
        f"AUC {ranks.value:.3f}, lower bound {bound:.3f} (needs > 0.5); slope {slope.value:.2f} "
        f"[{slope.lo:.2f}, {slope.hi:.2f}] (needs {SLOPES[0]} to {SLOPES[1]}); predicted over "
        f"actual {ratio.value:.2f} [{ratio.lo:.2f}, {ratio.hi:.2f}] (needs to meet {RATIOS[0]} to "
        f"{RATIOS[1]})"
    )
    outcome: Outcome = FAIL if bad else PASS if sure else UNCLEAR
    return Step(2, candidate, name, outcome, text, ranks.value, bound, 0.5)


def _meets(e: Estimate, span: tuple[float, float]) -> bool:
    return e.lo <= span[1] and e.hi >= span[0]


def effect_steps(c: Candidate, settings: GateConfig, alpha: float, currency: str) -> list[Step]:
    """Predicted effects vary, customers ranked by them differ, and they are calibrated."""
    spread = float(np.std(c.report.predicted))
    ranks = c.report.estimates[settings.ranking]
    bound = ranks.lower(alpha)
    # A learner that tells nobody from anybody has the same number for all.
    varied = bool(spread > 1e-12 and bound > 0)
    slope = c.slope
    lower = slope.lower(alpha)
    # Effects that are told too small cost nothing that is not seen; told too large, they do.
    straight: Outcome = PASS if slope.lo <= 1 else UNCLEAR
    if not (slope.hi >= 1 and lower > 0):
        straight = FAIL
    done = {"none": "none was needed"}.get(c.calibrating.kind, c.calibrating.kind)
    was = c.calibrating.slope
    return [
        Step(
            3,
            c.name,
            f"effects differ ({settings.ranking})",
            PASS if varied else FAIL,
            f"{ranks.value * PER:+.1f} {currency} per {PER:,}, lower bound {bound * PER:+.1f} "
            f"(needs > 0); predicted effects vary by {spread:.3g}",
            ranks.value,
            bound,
            0.0,
        ),
        Step(
            3,
            c.name,
            "effects are calibrated",
            straight,
            f"slope {slope.value:.2f} [{slope.lo:.2f}, {slope.hi:.2f}] (needs to reach 1; above "
            f"it, effects are told too small), lower bound {lower:.2f} (needs > 0); on the "
            f"training rows out of fold {was.value:.2f} [{was.lo:.2f}, {was.hi:.2f}], "
            f"calibration: {done}",
            slope.value,
            lower,
            0.0,
        ),
    ]


def budget_step(
    candidate: str, spend: Estimate, budget: float | None, settings: GateConfig, currency: str
) -> Step:
    """Measured cost per row against the budget: shown to keep it, shown to pass it, or neither."""
    if budget is None:
        return Step(5, candidate, "budget", NOT_RUN, "no budget limits the cost")
    upper, most = spend.upper(settings.alpha), budget * (1 + settings.budget_tolerance)
    kept = spend.value <= budget * (1 + 1e-9) and upper <= most
    over = spend.lower(settings.alpha) > budget * (1 + 1e-9)
    text = (
        f"cost {spend.value * PER:.1f} {currency} per {PER:,} (needs <= {budget * PER:.1f}), upper "
        f"bound {upper * PER:.1f} (needs <= {most * PER:.1f})"
    )
    outcome: Outcome = PASS if kept else FAIL if over else UNCLEAR
    return Step(5, candidate, "budget", outcome, text, spend.value, upper, most)


def guardrail_steps(
    candidate: str,
    found: Sequence[Guardrail],
    policy: FloatArray,
    models: Models,
    alpha: float,
) -> list[Step]:
    """Not inferior to no offer: the upper bound of the change is at most the margin."""
    if not found:
        text = "no events and no order lines tell of unsubscriptions or returns"
        return [Step(6, candidate, "guardrails", NOT_RUN, text)]
    steps = []
    for one in found:
        e = change(one, policy, models)
        upper = e.upper(alpha)
        text = (
            f"{e.value * PER:+.2f} per {PER:,} customers, upper bound {upper * PER:+.2f} "
            f"(needs <= {one.margin * PER:.1f})"
        )
        outcome: Outcome = PASS if upper <= one.margin else FAIL
        steps.append(Step(6, candidate, one.name, outcome, text, e.value, upper, one.margin))
    return steps


def segment_step(candidate: str, gains: Mapping[str, Estimate], currency: str) -> Step:
    """Does any segment lose? One-sided tests, at most FALSE_SHARE of the alarms false (Benjamini &
    Hochberg 1995)."""
    name = "harm in segments"
    told = {segment: e for segment, e in gains.items() if e.se > 0}
    if not told:
        return Step(6, candidate, name, NOT_RUN, "no segment of 100 customers or more has offers")
    p = ndtr(np.array([e.value / e.se for e in told.values()]))
    harmed = [s for s, bad in zip(told, benjamini_hochberg(p, FALSE_SHARE), strict=True) if bad]
    worst = min(told, key=lambda s: told[s].value / told[s].se)
    e = told[worst]
    text = (
        f"{len(harmed)} of {len(told)} segments lose: {', '.join(harmed[:5])}"
        if harmed
        else f"none of {len(told)} segments is shown to lose"
    )
    text += (
        f"; the worst is {worst} with {e.value * PER:+.1f} [{e.lo * PER:.1f}, {e.hi * PER:.1f}] "
        f"{currency} per {PER:,}"
    )
    return Step(
        6, candidate, name, FAIL if harmed else PASS, text, float(len(harmed)), threshold=0.0
    )


def golden_step(candidate: str, bundle: ScoringBundle) -> Step:
    """Saved and loaded, the bundle scores as it did. The number counts bundles that do not."""
    name = "saved bundle"
    with tempfile.TemporaryDirectory() as folder:
        try:
            saved = bundle.save(Path(folder) / "bundle")
            loaded = load_bundle(Path(folder) / "bundle", saved.sha256)
        except BundleError as error:
            return Step(7, candidate, name, FAIL, str(error), 1.0, threshold=0.0)
    rows = 0 if loaded.golden is None else len(loaded.golden)
    return Step(7, candidate, name, PASS, f"{rows} golden rows score the same", 0.0, threshold=0.0)


def seed_step(
    candidate: str, gain: Estimate, again: Callable[[], Estimate] | None, currency: str
) -> Step:
    """Learned with another seed, the policy earns the same within one standard error."""
    name = "another seed"
    if again is None:
        return Step(7, candidate, name, NOT_RUN, "learned with one seed")
    other = again()
    apart = abs(other.value - gain.value)
    text = (
        f"{other.value * PER:+.1f} in place of {gain.value * PER:+.1f} {currency} per {PER:,}; "
        f"{apart * PER:.1f} apart (needs <= {gain.se * PER:.1f}, the standard error)"
    )
    outcome: Outcome = PASS if apart <= gain.se else FAIL
    return Step(7, candidate, name, outcome, text, apart, threshold=gain.se)
