"""Repurchase, churn and customer value: three candidates judged on a time that was held out.

All candidates learn from what was over at the test moment and are compared on what came after it.
Trees are served only where they beat both baselines, with the 95% interval of the difference
above 0; else the better baseline is served. What is served learns once more, up to the end of the
data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from scipy.stats import rankdata

from features.config import Config
from features.errors import DataError
from training.fit import settings_of
from training.responses import calibration_error, deciles
from training.value_panel import Panel, Plan
from uplift.bundle import Money, ScoringBundle
from uplift.costs import unchanged
from uplift.data import FloatArray, draw_folds, stream
from uplift.effects import EffectModel
from uplift.errors import DesignError
from uplift.scores import Estimate
from uplift.value import Kind, Target, ValueModel, ValueModels
from uplift.value_fit import FittedTrees, fit_lifetime, fit_lightgbm, fit_naive

NO_EFFECTS = "no exposures: no effects, and no offers"
VALUE_ALONE = "customer_value_alone"
DRAWS = 200
# With fewer of either kind nothing can be learned or judged.
FEWEST = 10
BASELINES: tuple[Kind, ...] = ("naive", "lifetime")
GOLDEN_ROWS = 16
Metric = Callable[[FloatArray, FloatArray], float]


def _log_loss(y: FloatArray, p: FloatArray) -> float:
    inside = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(inside) + (1 - y) * np.log1p(-inside)))


def _auc(y: FloatArray, p: FloatArray) -> float:
    positive = y == 1
    n = int(positive.sum())
    return float((rankdata(p)[positive].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def _rank_correlation(y: FloatArray, p: FloatArray) -> float:
    if np.ptp(p) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(y), rankdata(p))[0, 1])


def _mean_ratio(y: FloatArray, p: FloatArray) -> float:
    return float(p.mean() / y.mean())


# The first metric decides. Of probabilities, the log loss: it is proper, so neither ranking nor
# calibration can be bought with the other. Of money, the root mean squared error: it is least at
# the mean, and value is summed; the absolute error is least at the median, which is 0 wherever
# most customers buy nothing.
PROBABILITY: dict[str, Metric] = {
    "log_loss_error": _log_loss,
    "brier_error": lambda y, p: float(np.mean((y - p) ** 2)),
    "auc": _auc,
    "calibration_error": calibration_error,
    "mean_ratio": _mean_ratio,
}
MONEY: dict[str, Metric] = {
    "rms_error": lambda y, p: float(np.sqrt(np.mean((y - p) ** 2))),
    "mean_abs_error": lambda y, p: float(np.mean(np.abs(y - p))),
    "rank_correlation": _rank_correlation,
    "mean_ratio": _mean_ratio,
}
# Compared between candidates; a positive difference is always for the trees.
COMPARED = {
    "log_loss_error": -1, "brier_error": -1, "auc": 1,
    "rms_error": -1, "mean_abs_error": -1, "rank_correlation": 1,
}  # fmt: skip


@dataclass(frozen=True)
class ValueReport:
    """One target, judged on the customers of the test moment.

    metrics  kind of model -> metric -> estimate
    gains    baseline -> metric -> what the trees are better by (below 0: worse)
    deciles  of the served kind, highest prediction first
    served   the kind that is registered; `why`, in a sentence; `model`, learned up to the end
    rounds, loss  of the trees that were judged
    y, p     (n,) outcome and prediction of the served kind
    """

    target: Target
    plan: Plan
    unit: str
    rows: int
    metrics: Mapping[str, Mapping[str, Estimate]]
    gains: Mapping[str, Mapping[str, Estimate]]
    served: Kind
    why: str
    rounds: int
    loss: str
    deciles: list[dict[str, float]]
    model: ValueModel
    y: FloatArray
    p: FloatArray

    @property
    def deciding(self) -> str:
        return next(iter(MONEY if self.target == "clv" else PROBABILITY))


@dataclass(frozen=True)
class Values:
    """What came of the value targets: reports, the models to serve, and notes."""

    reports: tuple[ValueReport, ...] = ()
    models: ValueModels | None = None
    notes: tuple[str, ...] = ()


def learn_values(panel: Panel, config: Config, progress: Callable[[str], None]) -> Values:
    """Judge every value target, and learn what is served once more up to the end of the data.

    A target that cannot be learned (nobody comes back, hardly any outcome) is left out, noted.
    """
    reports, notes = [], []
    for plan in panel.plans:
        try:
            report = judge_target(panel, plan, config)
        except DesignError as error:
            notes.append(f"{plan.target} is left out: {error}")
            continue
        reports.append(report)
        progress(f"{report.target}: {report.why}")
        if plan.past.days < plan.days:
            notes.append(
                f"{plan.target}: before the test moment history is too short for whole windows of "
                f"{plan.days} days; the candidates learned there from {plan.past.days} days"
            )
    models = None
    if reports:
        golden = np.linspace(0, len(panel.X) - 1, min(GOLDEN_ROWS, len(panel.X))).astype(int)
        models = ValueModels(
            panel.schema,
            {r.target: r.model for r in reports},
            config.outcome.margin_rate is None,
            panel.X[golden],
        )
    return Values(tuple(reports), models, tuple(notes))


def judge_target(panel: Panel, plan: Plan, config: Config) -> ValueReport:
    """Fit the candidates at the test moment and compare them on what came after it.

    Raises DesignError where there is too little to learn from or to judge by.
    """
    target = plan.target
    rows = panel.at(plan.test)
    rows[rows] = panel.history(rows).asked(target, config.targets.active_days)
    y = panel.outcome(target, rows, plan.days)
    _require(target, y, "to judge by")
    fitted = Candidates(panel, plan, config, plan.test)
    trees = fitted.trees()
    models: dict[str, ValueModel] = {
        "lightgbm": trees.model,
        "naive": fitted.baseline("naive"),
        "lifetime": fitted.baseline("lifetime"),
    }
    threads = config.training.threads
    X = panel.X[rows]
    predicted = {k: m.predict(X, panel.schema, threads) for k, m in models.items()}
    rng = stream(config.training.seed, f"bootstrap {target}")
    metrics, gains = compare(y, predicted, MONEY if target == "clv" else PROBABILITY, rng)
    served, why = choose(metrics, gains, next(iter(MONEY if target == "clv" else PROBABILITY)))
    final = Candidates(panel, plan, config, panel.end)
    model = final.trees().model if served == "lightgbm" else final.baseline(served)
    money = "contribution" if config.outcome.margin_rate is not None else "revenue"
    p = predicted[served]
    return ValueReport(
        target=target,
        plan=plan,
        unit=f"{money}, {config.currency}" if target == "clv" else "probability",
        rows=len(y),
        metrics=metrics,
        gains=gains,
        served=served,
        why=why,
        rounds=trees.rounds,
        loss=trees.loss,
        deciles=deciles(y, p),
        model=model,
        y=y,
        p=p,
    )


class Candidates:
    """The candidates of one target, each learned from what was over at a moment."""

    def __init__(self, panel: Panel, plan: Plan, config: Config, moment: datetime) -> None:
        self.panel, self.plan, self.config, self.moment = panel, plan, config, moment
        self.windows = plan.past if moment == plan.test else plan.now
        rows = panel.at(*self.windows.starts)
        rows[rows] = panel.history(rows).asked(plan.target, config.targets.active_days)
        self.rows = rows
        self.y = panel.outcome(plan.target, rows, self.windows.days)
        _require(plan.target, self.y, "to learn from")

    def baseline(self, kind: Kind) -> ValueModel:
        plan = self.plan
        model = ValueModel(
            plan.target, kind, plan.days, self.windows.days, self.config.targets.active_days
        )
        if kind == "naive":
            weights = fit_naive(plan.target, self.panel.history(self.rows), self.y)
            return ValueModel(**{**vars(model), "weights": weights})
        now = self.panel.history(self.panel.at(self.moment))
        share = self.panel.contribution_share(self.moment)
        return ValueModel(**{**vars(model), "lifetime": fit_lifetime(plan.target, now, share)})

    def trees(self) -> FittedTrees:
        panel, seed = self.panel, self.config.training.seed
        customer = panel.customer[self.rows]
        fold = draw_folds(
            customer,
            np.zeros(len(customer), dtype=np.int64),
            self.config.training.folds,
            stream(seed, f"folds {self.plan.target}"),
        )
        start = ValueModel(**{**vars(self.baseline("lifetime")), "kind": "lightgbm"})
        settings = settings_of(self.config, len(customer))
        return fit_lightgbm(start, panel.X[self.rows], panel.schema, self.y, fold, settings)


def _require(target: Target, y: FloatArray, what_for: str) -> None:
    some = int((y != 0).sum())
    few = some if target == "clv" else min(some, len(y) - some)
    if few < FEWEST:
        raise DesignError(
            f"{target}: expected at least {FEWEST} customers {what_for} with each outcome, found "
            f"{few} among {len(y)}"
        )


def compare(
    y: FloatArray,
    predicted: Mapping[str, FloatArray],
    metrics: Mapping[str, Metric],
    rng: np.random.Generator,
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Estimate]]]:
    """Metrics of each candidate, and the gains of `lightgbm` over each other one, with standard
    errors from one bootstrap over customers (one row each), the same draws for all."""

    def measured(rows: Any) -> dict[str, dict[str, float]]:
        return {
            kind: {name: metric(y[rows], p[rows]) for name, metric in metrics.items()}
            for kind, p in predicted.items()
        }

    value = measured(slice(None))
    draws = []
    for _ in range(DRAWS):
        rows = rng.integers(0, len(y), len(y))
        if np.count_nonzero(y[rows]) > 0 and np.ptp(y[rows]) > 0:
            draws.append(measured(rows))

    def error(of: Callable[[Mapping[str, Mapping[str, float]]], float]) -> Estimate:
        return Estimate(of(value), float(np.std([of(d) for d in draws], ddof=1)))

    def metric_of(kind: str, name: str) -> Estimate:
        return error(lambda m: m[kind][name])

    def gain_over(kind: str, name: str) -> Estimate:
        return error(lambda m: COMPARED[name] * (m["lightgbm"][name] - m[kind][name]))

    others = [kind for kind in predicted if kind != "lightgbm"]
    return (
        {kind: {name: metric_of(kind, name) for name in metrics} for kind in predicted},
        {
            kind: {name: gain_over(kind, name) for name in metrics if name in COMPARED}
            for kind in others
        },
    )


def choose(
    metrics: Mapping[str, Mapping[str, Estimate]],
    gains: Mapping[str, Mapping[str, Estimate]],
    deciding: str,
) -> tuple[Kind, str]:
    """What is served, and why: the trees where they beat every baseline, else the better one."""
    better = min(BASELINES, key=lambda kind: metrics[kind][deciding].value)
    gain = gains[better][deciding]
    shown = f"{gain.value:+.4g} [{gain.lo:.4g}, {gain.hi:.4g}] in {deciding}"
    if all(gains[kind][deciding].lo > 0 for kind in BASELINES):
        return "lightgbm", f"lightgbm is served: it beats {better}, the better baseline, by {shown}"
    if gain.lo > 0:
        other = next(kind for kind in BASELINES if kind != better)
        lost = gains[other][deciding]
        shown = f"{lost.value:+.4g} [{lost.lo:.4g}, {lost.hi:.4g}] in {deciding}"
        return better, f"{better} is served: lightgbm does not clearly beat {other} ({shown})"
    return better, f"{better} is served: lightgbm does not clearly beat it ({shown})"


def value_bundle(panel: Panel, values: Values, config: Config) -> ScoringBundle:
    """The bundle of a training on transactions alone: no arms, no response, only values.

    Raises DataError where no target could be learned.
    """
    if values.models is None:
        raise DataError(
            "transactions",
            expected="enough history to learn one of training.response_targets",
            found="; ".join(values.notes),
            remedy="Give more history, or fewer days in `targets`.",
        )
    nothing = EffectModel(np.zeros(0))
    return ScoringBundle(
        schema=panel.schema,
        offers=(),
        offered=(),
        policy=VALUE_ALONE,
        effects=nothing,
        costs=nothing,
        cost_calibration=unchanged(0),
        response=None,
        money=Money(config.outcome.kind, config.outcome.value, config.outcome.margin_rate or 1.0),
        frozen=json.loads(panel.frozen.to_json()),
        features={"names": list(panel.schema.names), "given": []},
        info={
            "name": config.name,
            "currency": config.currency,
            "outcome": config.outcome.model_dump(),
            "simulated": panel.tables.simulated,
            "exposures": 0,
        },
        values=values.models,
        golden=values.models.golden,
    )


def value_summary(values: Values) -> list[str]:
    """Lines on each target: the candidates' metrics, what the trees gain, what is served."""
    out: list[str] = []
    for r in values.reports:
        names = [n for n in next(iter(r.metrics.values())) if n in COMPARED]
        out += [
            "",
            f"  {r.target} in {r.plan.days} days ({r.unit}), {r.rows:,} customers as of "
            f"{r.plan.test:%Y-%m-%d}, a time that nothing was learned from; 95% intervals",
            f"    {'':<24}" + "".join(f"{name:<34}" for name in names),
        ]
        for kind, metrics in r.metrics.items():
            mark = ">" if kind == r.served else " "
            out.append(f"  {mark} {kind:<24}" + "".join(_cell(metrics[name]) for name in names))
        for kind, gains in r.gains.items():
            out.append(f"    gain over {kind:<14}" + "".join(_cell(gains[name]) for name in names))
        out.append(f"    {r.why}")
    out += [f"  {note}" for note in values.notes]
    return out


def _cell(e: Estimate) -> str:
    return f"{f'{e.value:.4g} [{e.lo:.4g}, {e.hi:.4g}]':<34}"


def values_json(values: Values) -> dict[str, Any]:
    """The reports as data."""
    return {
        r.target: {
            "days": r.plan.days,
            "test": r.plan.test.isoformat(),
            "learned_days": r.plan.past.days,
            "learned_at": [m.isoformat() for m in r.plan.past.starts],
            "unit": r.unit,
            "rows": r.rows,
            "metrics": {k: {n: e.to_json() for n, e in m.items()} for k, m in r.metrics.items()},
            "gains": {k: {n: e.to_json() for n, e in m.items()} for k, m in r.gains.items()},
            "served": r.served,
            "why": r.why,
            "trees": r.rounds,
            "loss": r.loss,
            "deciles": r.deciles,
        }
        for r in values.reports
    }
