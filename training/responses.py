"""Response models and their honest report: held out by customer, and in time where there is any.

Each metric comes with a clustered interval: by its influence values, or by a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from features.config import Config
from training.dataset import Dataset
from training.fit import Models, settings_of
from training.targets import TARGETS, time_cut
from uplift.boosting import Binned
from uplift.data import BoolArray, FloatArray, IntArray, draw_folds, stream
from uplift.effects import sigmoid
from uplift.response import ResponseModel, fit_response, platt
from uplift.scores import Estimate, from_influence

DRAWS = 100
BINS = 10


@dataclass(frozen=True)
class ResponseReport:
    """A response model judged on rows that it has not seen.

    held_out  "customers", or "last campaigns" (assigned after everything that was learned from)
    metrics   auc, average_precision, brier_error, calibration_error, calibration_slope,
              calibration_intercept, base_rate, lift_at_10, each with an interval
    deciles   (10,) observed and predicted rates, highest prediction first, and lift
    """

    target: str
    held_out: str
    rows: int
    positives: int
    rounds: int
    metrics: dict[str, Estimate]
    deciles: list[dict[str, float]]
    model: ResponseModel
    y: FloatArray
    p: FloatArray


def response_reports(dataset: Dataset, models: Models, config: Config) -> list[ResponseReport]:
    """One report per configured target and way of holding out that the data allow."""
    reports = []
    for name in config.training.response_targets:
        if name not in TARGETS:
            continue  # learned from transactions alone
        use, label = TARGETS[name](dataset)
        for held_out, test in _splits(dataset, models, config):
            report = _report(name, held_out, test, use, label, dataset, models, config)
            if report is not None:
                reports.append(report)
    return reports


def _splits(dataset: Dataset, models: Models, config: Config) -> list[tuple[str, BoolArray]]:
    splits: list[tuple[str, BoolArray]] = [("customers", models.is_test)]
    at = dataset.training.assigned_at
    cut = time_cut(at, config.training.test_share)
    if cut is not None:
        late: BoolArray = at >= cut
        splits.append(("last campaigns", late))
    return splits


def _report(
    name: str,
    held_out: str,
    test: BoolArray,
    use: BoolArray,
    label: FloatArray,
    dataset: Dataset,
    models: Models,
    config: Config,
) -> ResponseReport | None:
    data = dataset.training
    past = ~test
    if held_out == "last campaigns":
        # Outcomes of earlier campaigns must be known when the last ones start.
        window = np.timedelta64(config.outcome.window_days, "D")
        past = data.assigned_at + window <= data.assigned_at[test].min()
    train_rows, test_rows = use & past, use & test
    if min(_classes(label[train_rows]), _classes(label[test_rows])) < 10:
        return None
    if name == "response" and held_out == "customers":
        model, rounds = models.response.model, models.response.rounds
    else:
        X, cluster = data.X[train_rows], data.cluster[train_rows]
        rng = stream(config.training.seed, "response folds")
        fold = draw_folds(cluster, data.arm[train_rows], config.training.folds, rng)
        settings = settings_of(config, len(X))
        binned = Binned(X, data.schema.categorical, settings.threads)
        fitted = fit_response(binned, X, np.arange(len(X)), label[train_rows], fold, settings)
        model, rounds = fitted.model, fitted.rounds
    y = label[test_rows]
    p = model.predict(data.X[test_rows], config.training.threads)
    metrics = measure(y, p, data.cluster[test_rows], stream(config.training.seed, "bootstrap"))
    return ResponseReport(
        name, held_out, len(y), int(y.sum()), rounds, metrics, deciles(y, p), model, y, p
    )


def _classes(y: FloatArray) -> int:
    return int(min(y.sum(), len(y) - y.sum()))


def auc(y: FloatArray, p: FloatArray, cluster: IntArray) -> Estimate:
    """Area under the ROC curve; its influence values are the placements of DeLong et al. (1988)."""
    ranked = rankdata(p)
    positive = y == 1
    below = (ranked[positive] - rankdata(p[positive])) / (~positive).sum()
    above = 1 - (ranked[~positive] - rankdata(p[~positive])) / positive.sum()
    value = float(below.mean())
    psi = np.empty(len(y))
    psi[positive] = (below - value) / positive.mean()
    psi[~positive] = (above - value) / (~positive).mean()
    return from_influence(value, psi, cluster)


def calibration(y: FloatArray, p: FloatArray, cluster: IntArray) -> tuple[Estimate, Estimate]:
    """Cox's (1958) slope and intercept, with the clustered sandwich standard error."""
    inside = np.clip(p, 1e-7, 1 - 1e-7)
    log_odds = np.log(inside / (1 - inside))
    slope, intercept = platt(log_odds, y)
    fitted = sigmoid(intercept + slope * log_odds)
    design = np.column_stack([log_odds, np.ones(len(y))])
    hessian = design.T @ (design * (fitted * (1 - fitted))[:, None]) / len(y)
    psi = (design * (y - fitted)[:, None]) @ np.linalg.pinv(hessian)
    return (
        from_influence(slope, psi[:, 0], cluster),
        from_influence(intercept, psi[:, 1], cluster),
    )


def calibration_error(y: FloatArray, p: FloatArray) -> float:
    """Root of the debiased mean squared gap between rate and prediction over ten equal bins of
    p (the plug-in square less its expected noise, Xu & Yadlowsky 2022); never below 0."""
    total = 0.0
    for index in np.array_split(np.argsort(p, kind="stable"), BINS):
        gap = y[index] - p[index]
        if len(index) > 1:
            total += len(index) / len(y) * (gap.mean() ** 2 - gap.var(ddof=1) / len(index))
    return float(np.sqrt(max(total, 0.0)))


def lift_at(y: FloatArray, p: FloatArray, share: float) -> float:
    """Rate among the highest `share` of predictions over the overall rate."""
    top = np.argsort(-p, kind="stable")[: max(1, round(share * len(p)))]
    return float(y[top].mean() / y.mean())


BOOTSTRAPPED: dict[str, Callable[[FloatArray, FloatArray], float]] = {
    "average_precision": lambda y, p: float(average_precision_score(y, p)),
    "brier_error": lambda y, p: float(np.mean((y - p) ** 2)),
    "calibration_error": calibration_error,
    "mean_ratio": lambda y, p: float(p.mean() / y.mean()),
    "lift_at_10": lambda y, p: lift_at(y, p, 0.1),
    "base_rate": lambda y, p: float(y.mean()),
}


def measure(
    y: FloatArray, p: FloatArray, cluster: IntArray, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Every metric of 0/1 outcomes and probabilities, (n,) each, with its standard error."""
    slope, intercept = calibration(y, p, cluster)
    return {
        "auc": auc(y, p, cluster),
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        **bootstrap(y, p, cluster, rng),
    }


def bootstrap(
    y: FloatArray, p: FloatArray, cluster: IntArray, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Each metric with the standard error of a bootstrap over clusters; (n,) inputs."""
    _, codes = np.unique(cluster, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 2))
    draws: dict[str, list[float]] = {name: [] for name in BOOTSTRAPPED}
    for _ in range(DRAWS):
        drawn = rng.integers(0, codes.max() + 1, codes.max() + 1)
        sizes = starts[drawn + 1] - starts[drawn]
        offset = np.repeat(starts[drawn] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        rows = order[np.arange(sizes.sum()) + offset]
        if _classes(y[rows]) == 0:
            continue
        for name, metric in BOOTSTRAPPED.items():
            draws[name].append(metric(y[rows], p[rows]))
    return {
        name: Estimate(metric(y, p), float(np.std(draws[name], ddof=1)))
        for name, metric in BOOTSTRAPPED.items()
    }


def deciles(y: FloatArray, p: FloatArray) -> list[dict[str, float]]:
    """Tenths of the predictions, highest first."""
    return [
        {
            "part": float(part + 1),
            "rows": float(len(index)),
            "predicted": float(p[index].mean()),
            "observed": float(y[index].mean()),
            "lift": float(y[index].mean() / y.mean()),
        }
        for part, index in enumerate(np.array_split(np.argsort(-p, kind="stable"), BINS))
    ]
