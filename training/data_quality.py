"""What a training keeps of its data: the page on their quality, and the profile of its features."""

from __future__ import annotations

import json
from dataclasses import dataclass

from features.build import build_features
from features.check import findings
from features.config import Config
from features.drift import FeatureProfile, profile_features
from features.frozen import FrozenValues
from features.profile import profile_source
from features.profile_page import page
from features.spine import all_customers
from features.tables import Tables
from uplift.bundle import ScoringBundle

PAGE, FEATURE_PROFILE = "data_quality.html", "feature_profile.json"


@dataclass(frozen=True)
class DataQuality:
    """html: the page; metrics: its numbers, named data_*."""

    html: str
    metrics: dict[str, float]


def data_quality(tables: Tables, config: Config) -> DataQuality:
    """Profile the source and look for problems."""
    profile = profile_source(tables, config)
    problems = findings(tables, config)
    metrics = profile.metrics()
    for level in ("error", "warning"):
        metrics[f"data_{level}s"] = float(sum(p.level == level for p in problems))
    return DataQuality(page(profile, problems, config), metrics)


def feature_profile(tables: Tables, bundle: ScoringBundle, config: Config) -> FeatureProfile:
    """The distribution of what the bundle reads over everybody whom it would score now: all
    customers as of the moment that the configuration says, as the snapshot has them."""
    as_of = config.as_of()
    frozen = FrozenValues.from_json(json.dumps(dict(bundle.frozen)))
    spine = all_customers(tables, as_of, config)
    built = build_features(tables, spine, list(bundle.features["names"]), config, frozen)
    return profile_features(built.frame, as_of, frozen)
