"""Features that know too much: of the outcome (a leak), or of the arm (a broken draw)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from uplift.boosting import Binned, Settings
from uplift.data import BoolArray, FloatArray, IntArray, TrainingSet, draw_folds
from uplift.diagnostics import NOT_RUN, PASS, SIGNIFICANCE, STOP, WARN, Check, Outcome
from uplift.scores import Estimate, cluster_codes, clustered_error

WARN_ABOVE, STOP_ABOVE = 0.95, 0.99
# With fewer of a side a feature may separate both by luck.
MIN_OF_EACH = 20
SCANNED_ROWS = 30_000
CLASSIFIER_ROWS, CLASSIFIER_MIN, CLASSIFIER_PARTS = 20_000, 400, 4
CLASSIFIER: dict[str, Any] = {"rounds": 20, "num_leaves": 8, "learning_rate": 0.15}


def single_feature_auc(x: FloatArray, label: BoolArray) -> float | None:
    """AUC of (n,) values for a label, in the better direction; None with too few of a side.

    Missing values are left out; whether one is missing is a feature of its own.
    """
    return _separation(*_ranked(x), label)


def _ranked(x: FloatArray) -> tuple[BoolArray, FloatArray]:
    known = ~np.isnan(x)
    return known, rankdata(x[known])


def _separation(known: BoolArray, ranks: FloatArray, label: BoolArray) -> float | None:
    positive = label[known]
    n, m = len(positive), int(positive.sum())
    if min(m, n - m) < MIN_OF_EACH:
        return None
    area = (float(ranks[positive].sum()) - m * (m + 1) / 2) / (m * (n - m))
    return max(area, 1 - area)


def leak_scan(data: TrainingSet, rng: np.random.Generator) -> Check:
    """The best AUC of any one feature for the outcome: above .95 warns, above .99 stops.

    The outcome is whether there was a conversion, and where it has many values also whether it lies
    above its median. A category counts by its rates, learned on half of the rows and tried on the
    others, and each feature by whether it is missing too. At most SCANNED_ROWS rows are looked at.
    """
    name = "leak scan"
    rows = np.arange(len(data))
    if len(data) > SCANNED_ROWS:
        rows = rng.choice(len(data), SCANNED_ROWS, replace=False)
    labels = [data.converted[rows] > 0]
    if len(np.unique(data.y[rows])) > 2:
        labels.append(data.y[rows] > np.median(data.y[rows]))
    half = rng.random(len(rows)) < 0.5
    found: dict[str, float] = {}
    for i, feature in enumerate(data.schema.names):
        x = data.X[rows, i].astype(np.float64)
        missing = np.isnan(x)
        for label in labels if feature in data.schema.levels else ():
            rates = _rates(np.where(missing, -1, x).astype(np.int64) + 1, label, half)
            _keep(found, feature, single_feature_auc(rates[~half], label[~half]))
        if feature not in data.schema.levels:
            ranked = _ranked(x)
            for label in labels:
                _keep(found, feature, _separation(*ranked, label))
            if 0 < missing.sum() < len(x):
                for label in labels:
                    auc = single_feature_auc(missing.astype(np.float64), label)
                    _keep(found, f"{feature} missing", auc)
    if not found:
        text = f"fewer than {MIN_OF_EACH} rows with or without an outcome"
        return Check(name, NOT_RUN, None, STOP_ABOVE, text)
    worst = sorted(found, key=lambda f: -found[f])
    stopped = tuple(f for f in worst if found[f] > STOP_ABOVE)
    warned = tuple(f for f in worst if found[f] > WARN_ABOVE)
    told = ", ".join(f"{f} {found[f]:.3f}" for f in (warned or worst[:1])[:5])
    text = f"AUC of a single feature for the outcome: {told}"
    if warned:
        text += "; so close to the outcome that it may have been written down after it"
    outcome: Outcome = STOP if stopped else WARN if warned else PASS
    return Check(name, outcome, found[worst[0]], STOP_ABOVE, text, stopped or warned)


def _keep(found: dict[str, float], feature: str, auc: float | None) -> None:
    if auc is not None:
        found[feature] = max(found.get(feature, 0.5), auc)


def _rates(code: IntArray, label: BoolArray, learn: BoolArray) -> FloatArray:
    """(n,) rate of the label among the `learn` rows of the same code; unseen codes get the mean."""
    size = int(code.max()) + 1
    seen = np.bincount(code[learn], minlength=size)
    hits = np.bincount(code[learn], weights=label[learn], minlength=size)
    mean = float(label[learn].mean()) if learn.any() else 0.0
    rates: FloatArray = ((hits + mean) / (seen + 1))[code]
    return rates


def weighted_auc(
    positive: BoolArray, score: FloatArray, weight: FloatArray
) -> tuple[float, FloatArray]:
    """AUC with row weights, ties half, and its influence values (n,) (sums over n are errors)."""
    order = np.argsort(score, kind="stable")
    s = score[order]
    w_1, w_0 = np.where(positive, weight, 0.0)[order], np.where(positive, 0.0, weight)[order]
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    block = np.cumsum(np.r_[0, (s[1:] != s[:-1]).astype(np.int64)])

    def below(w: FloatArray) -> FloatArray:
        sums = np.add.reduceat(w, starts)
        out: FloatArray = (np.cumsum(sums) - sums / 2)[block]
        return out

    total_1, total_0 = w_1.sum(), w_0.sum()
    under, over = below(w_0) / total_0, 1 - below(w_1) / total_1
    area = float(w_1 @ under / total_1)
    psi = np.empty(len(s))
    psi[order] = len(s) * (w_1 * (under - area) / total_1 + w_0 * (over - area) / total_0)
    return area, psi


def arm_classifier(
    data: TrainingSet, unit: IntArray, rng: np.random.Generator, seed: int, threads: int
) -> tuple[Estimate | None, Check]:
    """Two-sample test by a classifier (Lopez-Paz & Oquab 2017): out-of-fold AUC of the features for
    treated or not, weighted by 1 / P(side) where that varies, so that .5 is chance.

    Each part of the rows is judged by a model of the parts before it: scores of ordinary folds
    learn from each other's chance differences, and their mean varies far more than its error says
    (two folds: 1.4 times). Stops where the interval lies above .5 at one-sided .001.
    """
    name = "two-sample classifier"
    e_0 = data.assignment[:, 0]
    usable = np.flatnonzero((e_0 > 0) & (e_0 < 1))
    if len(usable) > CLASSIFIER_ROWS:
        usable = np.sort(rng.choice(usable, CLASSIFIER_ROWS, replace=False))
    part = data.rows(usable)
    treated = part.arm > 0
    if min(treated.sum(), (~treated).sum()) < CLASSIFIER_MIN // 2:
        text = f"fewer than {CLASSIFIER_MIN // 2} rows of a side"
        return None, Check(name, NOT_RUN, None, 0.5, text)
    p = part.assignment[:, 0]
    weight = np.where(treated, 1 / (1 - p), 1 / p)
    fold = draw_folds(unit[usable], treated.astype(np.int64), CLASSIFIER_PARTS, rng)
    settings = Settings(seed=seed, threads=threads, min_child_samples=50, **CLASSIFIER)
    binned = Binned(part.X, data.schema.categorical, threads)
    judged = np.flatnonzero(fold > 0)
    area, psi = 0.0, np.zeros(len(part))
    for f in range(1, CLASSIFIER_PARTS):
        learn, held = np.flatnonzero(fold < f), fold == f
        model = binned.fit(
            learn, treated[learn].astype(np.float64), settings, weight=weight[learn], binary=True
        )
        score = model.value(part.X[held], threads)
        mine, psi[held] = weighted_auc(treated[held], score, weight[held])
        area += mine * float(held.sum()) / len(judged)
    codes, groups = cluster_codes(unit[usable][judged])
    found = Estimate(area, clustered_error(psi[judged], codes, groups))
    low = area - float(norm.isf(SIGNIFICANCE)) * found.se
    text = (
        f"out-of-fold AUC of the features for treated or control {area:.3f} "
        f"[{found.lo:.3f}, {found.hi:.3f}] on {len(part):,} rows"
    )
    if low > 0.5:
        text += "; a fair draw of the arms leaves nothing to see"
    return found, Check(name, STOP if low > 0.5 else PASS, area, 0.5, text)
