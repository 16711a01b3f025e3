"""Drift: does the distribution of a feature differ from that of the training by more than chance?

The training profile is of everybody whom the model would have scored at the time of the training,
not of the exposures that it learned from: those are at other moments, of chosen customers. It
keeps, per feature, counts in bins (quantiles of numbers, categories, and the missing values). A
later sample is counted in the same bins, and the two rows of counts are compared by Pearson's
chi-square test of homogeneity. The population stability index
PSI = sum (q - p) log(q / p) is shown beside what chance alone makes of it, (B - 1)(1/n + 1/m) for B
bins and samples of n and m (Yurdakul 2018): a fixed threshold alarms falsely on small samples and
sleeps on large ones. Over all features, p-values are adjusted by Holm.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

from features.build import build_features
from features.config import Config, parse_time
from features.errors import DataError
from features.frozen import FrozenValues
from features.outputs import write_aside
from features.registry import CATALOGUE
from features.sources import open_source
from features.spine import all_customers, naive_utc

BINS, LEVELS = 10, 500
# Quantiles of fewer customers per bin vary so much themselves that alarms come too often.
CUSTOMERS_PER_BIN, FEWEST_BINS = 100, 3
# Pearson's rule: with fewer expected in a bin of the smaller sample, neighbours are merged.
LEAST_EXPECTED = 5.0
ALPHA = 0.01
# A shift whose lower bound is below this is certain but small.
MATERIAL = 0.1

Counts = npt.NDArray[np.float64]
Level = Literal["none", "small", "large", "not compared"]


@dataclass(frozen=True)
class FeatureBins:
    """Bins of one feature and the training's counts in them.

    Numbers: `edges` ascending, bin i holds values <= edges[i] and above the one before; one more
    holds the rest. Categories: at most LEVELS `levels`, then all others. The last count is of
    missing values.
    """

    edges: tuple[float, ...] | None
    levels: tuple[str, ...]
    counts: tuple[int, ...]

    def against(self, values: pd.Series[Any]) -> tuple[Counts, Counts]:
        """The training's counts and those of other values, in the same bins.

        A category that the training did not have is a bin of its own: only what the two samples
        hold together may decide on bins, or a rare category would look new because it was rare.
        """
        missing = float(values.isna().sum())
        before = np.array(self.counts, dtype=float)
        known = values.dropna()
        if self.edges is not None:
            codes = np.searchsorted(np.array(self.edges), _numbers(known), side="left")
            now = np.bincount(codes, minlength=len(before) - 1).astype(float)
            return before, np.append(now, missing)
        was = pd.Series(before[:-2], index=list(self.levels), dtype=float)
        found = known.astype(str).value_counts().astype(float)
        if before[-2]:  # the training had more categories than the profile names
            found = found[found.index.isin(was.index)]
        both = pd.concat([was, found], axis=1).fillna(0.0).sort_index()
        other = len(known) - float(found.sum())
        return (
            np.concatenate([both.iloc[:, 0], before[-2:]]),
            np.concatenate([both.iloc[:, 1], [other, missing]]),
        )


@dataclass(frozen=True)
class FeatureProfile:
    """The distribution of every feature at a training.

    customers: everybody whom the model would have scored then, as of the moment `as_of` (ISO 8601,
    UTC); frozen: the population values that features were built with.
    """

    customers: int
    as_of: str
    frozen: FrozenValues
    features: Mapping[str, FeatureBins]

    def to_json(self) -> dict[str, Any]:
        return {
            "customers": self.customers,
            "as_of": self.as_of,
            "frozen": json.loads(self.frozen.to_json()),
            "features": {
                name: {"edges": bins.edges, "levels": bins.levels, "counts": bins.counts}
                for name, bins in self.features.items()
            },
        }

    @classmethod
    def from_json(cls, text: str) -> FeatureProfile:
        """The inverse of `to_json`.

        Raises:
            DataError: not such an object.
        """
        try:
            data = json.loads(text)
            features = {}
            for name, bins in data["features"].items():
                edges = None if bins["edges"] is None else tuple(map(float, bins["edges"]))
                counts = tuple(map(int, bins["counts"]))
                levels = tuple(map(str, bins["levels"]))
                if len(counts) != (len(levels) if edges is None else len(edges)) + 2:
                    raise ValueError(f"the bins of {name} do not fit their counts")
                features[name] = FeatureBins(edges, levels, counts)
            frozen = FrozenValues.from_json(json.dumps(data["frozen"]))
            return cls(int(data["customers"]), str(data["as_of"]), frozen, features)
        except (ValueError, TypeError, KeyError, AttributeError, DataError) as error:
            raise DataError(
                "--reference",
                expected="the feature_profile.json of a training",
                found=str(error) or type(error).__name__,
                remedy="Take the file from the artifacts of the training's run.",
            ) from error


@dataclass(frozen=True)
class Drift:
    """One feature, then and now.

    psi: population stability index on the bins that were compared; psi_by_chance: its mean without
    drift; psi_at_least: lower bound of the shift itself at the level of the test; z: the test as a
    normal deviate; p: of this feature alone; p_adjusted: over all features (Holm).
    """

    feature: str
    level: Level
    psi: float = 0.0
    psi_by_chance: float = 0.0
    psi_at_least: float = 0.0
    z: float = 0.0
    degrees: int = 0
    p: float = 1.0
    p_adjusted: float = 1.0
    missing_before: float = 0.0
    missing_now: float = 0.0


@dataclass(frozen=True)
class _Test:
    statistic: float
    degrees: int
    p: float
    psi: float
    by_chance: float
    at_least: float
    z: float = field(default=0.0)


def profile_features(frame: pd.DataFrame, as_of: datetime, frozen: FrozenValues) -> FeatureProfile:
    """The profile of a frame with a row per customer and a column per feature, as of a moment."""
    bins = max(FEWEST_BINS, min(BINS, len(frame) // CUSTOMERS_PER_BIN))
    features = {str(name): _bins(frame[name], bins) for name in frame.columns}
    return FeatureProfile(len(frame), _iso(as_of), frozen, features)


def _iso(moment: datetime) -> str:
    return naive_utc(moment).isoformat() + "Z"


def compare(reference: FeatureProfile, frame: pd.DataFrame, alpha: float = ALPHA) -> list[Drift]:
    """Drift of each feature of the profile in a frame of one row per customer, the surest first.

    With probability 1 - alpha, no feature at all is called drifted where none is; with more, where
    some customers are in both. A feature that the frame lacks is `not compared`.
    """
    tests: dict[str, _Test] = {}
    missing: dict[str, tuple[float, float]] = {}
    skipped = []
    for name, bins in reference.features.items():
        if name not in frame:
            skipped.append(Drift(name, "not compared"))
            continue
        before, now = bins.against(frame[name])
        missing[name] = tuple(  # type: ignore[assignment]
            float(c[-1] / c.sum()) if c.sum() else 0.0 for c in (before, now)
        )
        tests[name] = _homogeneity(before, now, bins.edges is not None, alpha)
    adjusted = dict(zip(tests, _holm([t.p for t in tests.values()]), strict=True))
    found = []
    for name, test in tests.items():
        level: Level = "none"
        if adjusted[name] < alpha:
            level = "large" if test.at_least >= MATERIAL else "small"
        found.append(
            Drift(
                name,
                level,
                test.psi,
                test.by_chance,
                test.at_least,
                test.z,
                test.degrees,
                test.p,
                adjusted[name],
                *missing[name],
            )
        )
    return sorted(found, key=lambda d: (-d.z, d.feature)) + skipped


def _numbers(values: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Models see float32; the same rounding puts equal values into equal bins."""
    return values.to_numpy(dtype=np.float32).astype(np.float64)


def _bins(values: pd.Series[Any], bins: int) -> FeatureBins:
    known = values.dropna()
    missing = len(values) - len(known)
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        numbers = _numbers(known)
        edges = np.array([])
        if len(numbers):
            shares = np.arange(1, bins) / bins
            edges = np.unique(np.quantile(numbers, shares, method="inverted_cdf"))
        codes = np.searchsorted(edges, numbers, side="left")
        counts = np.bincount(codes, minlength=len(edges) + 1)
        return FeatureBins(tuple(map(float, edges)), (), (*map(int, counts), missing))
    frequent = known.astype(str).value_counts().iloc[:LEVELS]
    named = tuple(int(n) for n in frequent)
    levels = tuple(str(level) for level in frequent.index)
    return FeatureBins(None, levels, (*named, len(known) - sum(named), missing))


def _homogeneity(before: Counts, now: Counts, ordered: bool, alpha: float) -> _Test:
    """Pearson's chi-square test that two rows of counts come from one distribution."""
    n, m = before.sum(), now.sum()
    if not n or not m:
        return _Test(0.0, 0, 1.0, 0.0, 0.0, 0.0)
    before, now = _merge(before, now, ordered)
    degrees = len(before) - 1
    if degrees < 1:
        return _Test(0.0, 0, 1.0, 0.0, 0.0, 0.0)
    pooled = (before + now) / (n + m)
    scale = n * m / (n + m)
    statistic = float(scale * ((before / n - now / m) ** 2 / pooled).sum())
    # Half a count in each bin keeps the logarithm finite where one side has none.
    p = (before + 0.5) / (n + 0.5 * len(before))
    q = (now + 0.5) / (m + 0.5 * len(now))
    psi = float(((q - p) * np.log(q / p)).sum())
    cube = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - cube)) / np.sqrt(cube)  # Wilson and Hilferty
    return _Test(
        statistic,
        degrees,
        float(chi2.sf(statistic, degrees)),
        psi,
        float(degrees / scale),
        _lower(statistic, degrees, alpha) / scale,
        float(z),
    )


def _lower(statistic: float, degrees: int, alpha: float) -> float:
    """Lower bound of the noncentrality of a chi-square statistic at level alpha."""
    if chi2.sf(statistic, degrees) >= alpha:
        return 0.0
    # Far out, the noncentral distribution is normal with mean k + l and variance 2k + 4l.
    if statistic > 1e4:
        return float(statistic - degrees - 2.33 * np.sqrt(2 * degrees + 4 * statistic))
    return float(
        brentq(
            lambda shift: ncx2.sf(statistic, degrees, shift) - alpha,
            1e-9,
            statistic + 1.0,
            xtol=1e-6,
        )
    )


def _merge(before: Counts, now: Counts, ordered: bool) -> tuple[Counts, Counts]:
    """Merge bins until each has LEAST_EXPECTED in the smaller sample, by their pooled counts only,
    so that the choice does not depend on the difference that is tested."""
    smaller = min(before.sum(), now.sum()) / (before.sum() + now.sum())
    # Missing values are a bin like others; it stands at the end, and merges last.
    order = np.arange(len(before))
    if not ordered:
        order = np.append(np.argsort(-(before + now)[:-1], kind="stable"), len(before) - 1)
    merged: list[tuple[float, float]] = []
    a = b = 0.0
    for i in order:
        last = i == len(before) - 1
        if last and (a or b) and merged:
            # What is left of the values joins its neighbour, not the missing ones.
            merged[-1] = (merged[-1][0] + a, merged[-1][1] + b)
            a = b = 0.0
        a, b = a + before[i], b + now[i]
        if (a + b) * smaller >= LEAST_EXPECTED:
            merged.append((a, b))
            a = b = 0.0
    if a or b:
        if merged:
            merged[-1] = (merged[-1][0] + a, merged[-1][1] + b)
        else:
            merged.append((a, b))
    pairs = np.array(merged).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _holm(p: list[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the chance of any false alarm is at most the level."""
    order = np.argsort(p, kind="stable")
    steps = np.array(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(p) else []
    return [float(v) for v in adjusted]


def run(config: Config, args: Namespace) -> int:
    """Compare all customers as of a moment with a training profile; print and write the drift.

    Raises:
        ConfigError, DataError: a mistake in the options or the data.
    """
    path = Path(args.reference)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "--reference",
            expected="the feature_profile.json of a training",
            found=f"{path}: {getattr(error, 'strerror', None) or error}",
            remedy="Take the file from the artifacts of the training's run.",
        ) from error
    reference = FeatureProfile.from_json(text)
    as_of = config.as_of(None if args.as_of is None else parse_time(args.as_of, "--as-of"))
    tables = open_source(config).tables()
    spine = all_customers(tables, as_of, config)
    names = [name for name in reference.features if name in CATALOGUE]
    frame = build_features(tables, spine, names, config, reference.frozen).frame
    found = compare(reference, frame)
    report = {
        "as_of": _iso(as_of),
        "customers": len(frame),
        "reference": {"as_of": reference.as_of, "customers": reference.customers},
        "alpha": ALPHA,
        "features": [vars(drift) for drift in found],
    }
    write_aside(Path(args.out), lambda f: f.write_text(json.dumps(report, indent=1)))
    print(told(found, len(frame), reference))
    print(f"{args.out}")
    return 0


def told(found: list[Drift], customers: int, reference: FeatureProfile) -> str:
    """What a user reads: the features that drifted, and what could not be compared."""
    drifted = [d for d in found if d.level in ("small", "large")]
    compared = [d for d in found if d.level != "not compared"]
    lines = [
        f"{len(drifted)} of {len(compared)} features drifted: {customers} customers against "
        f"{reference.customers} at the training, as of {reference.as_of}; chance of any false "
        f"alarm {100 * ALPHA:g}%"
    ]
    if drifted:
        lines.append(
            f"  {'feature':<32}{'drift':<8}{'PSI':>8}{'by chance':>11}{'at least':>10}{'z':>8}"
            f"{'missing before and now':>25}"
        )
    for d in drifted:
        gaps = f"{100 * d.missing_before:.1f}% {100 * d.missing_now:.1f}%"
        lines.append(
            f"  {d.feature:<32}{d.level:<8}{d.psi:>8.3f}{d.psi_by_chance:>11.4f}"
            f"{d.psi_at_least:>10.3f}{d.z:>8.1f}{gaps:>25}"
        )
    skipped = [d.feature for d in found if d.level == "not compared"]
    if skipped:
        lines.append(f"  not compared, because the tables do not give them: {', '.join(skipped)}")
    return "\n".join(lines)
