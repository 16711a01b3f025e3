"""What a training keeps of its data: the page on their quality, and the profile of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from features.check import findings
from features.config import Config
from features.drift import FeatureProfile, profile_features
from features.profile import profile_source
from features.profile_page import page
from features.tables import Tables
from training.dataset import Dataset

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


def feature_profile(dataset: Dataset) -> FeatureProfile:
    """The distribution of each feature over the exposures that the training used."""
    training = dataset.training
    columns: dict[str, Any] = {}
    for i, name in enumerate(training.schema.names):
        values = training.X[:, i]
        levels = training.schema.levels.get(name)
        if levels is None:
            columns[name] = values
            continue
        texts = np.array([*levels, None], dtype=object)
        columns[name] = texts[np.where(np.isnan(values), len(levels), values).astype(int)]
    customers = len(pd.unique(training.customer))
    return profile_features(pd.DataFrame(columns), customers, dataset.frozen)
