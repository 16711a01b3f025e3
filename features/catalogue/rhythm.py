"""How regularly a customer buys."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.registry import feature


@feature(
    "interval_mean_days",
    group="rhythm",
    of="order_days",
    core=True,
    doc="Mean gap between successive order days; at least one gap.",
)
def interval_mean_days(d: Facts) -> ir.Value:
    # The gaps of consecutive days sum to the last day minus the first.
    return d.ratio(d.age.max() - d.age.min(), d.count() - 1)


@feature(
    "interval_cv_ratio",
    group="rhythm",
    of="gaps",
    doc="Population standard deviation ÷ mean of the gaps; at least two gaps.",
)
def interval_cv_ratio(g: Facts) -> ir.Value:
    # Whole numbers until the root: the same in any order of rows.
    n, total, squares = g.count(), g.days.sum(), (g.days * g.days).sum()
    spread = (n * squares - total * total).cast("float64").sqrt()
    return ibis.ifelse(n >= 2, g.ratio(spread, total), ibis.null("float64"))


@feature(
    "interval_expected_days",
    group="rhythm",
    of="order_days",
    population=True,
    doc="(2·m + sum of gaps) ÷ (2 + number of gaps); m is the frozen median gap, "
    "2 is `features.interval_prior_weight`.",
)
def interval_expected_days(d: Facts) -> ir.Value:
    weight = d.config.features.interval_prior_weight
    gaps = d.age.max() - d.age.min()
    return (weight * d.frozen.median_gap_days + gaps) / (weight + d.count() - 1)


@feature(
    "overdue_ratio",
    group="rhythm",
    of="features",
    core=True,
    population=True,
    uses=("recency_days", "interval_expected_days"),
    doc="recency_days ÷ interval_expected_days.",
)
def overdue_ratio(f: Facts) -> ir.Value:
    return f.ratio(f.recency_days, f.interval_expected_days)
