"""Response targets: which exposures a target is learned from, and their 0/1 label.

The targets of `uplift.value` are learned from transactions alone (`training.value`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from features.errors import ConfigError
from training.dataset import Dataset
from uplift.data import BoolArray, FloatArray
from uplift.value import VALUE_TARGETS

Label = Callable[[Dataset], tuple[BoolArray, FloatArray]]
TARGETS: dict[str, Label] = {}


def target(name: str) -> Callable[[Label], Label]:
    """Register a function that gives (n,) which exposures count, and (n,) labels."""

    def register(function: Label) -> Label:
        TARGETS[name] = function
        return function

    return register


@target("response")
def response(dataset: Dataset) -> tuple[BoolArray, FloatArray]:
    """P(conversion | control): control exposures, converted in the window."""
    data = dataset.training
    return data.arm == 0, data.converted


@target("redemption")
def redemption(dataset: Dataset) -> tuple[BoolArray, FloatArray]:
    """P(redeemed | offered): treated exposures, coupon redeemed in the window."""
    return dataset.training.arm > 0, dataset.redeemed


def check_targets(names: list[str]) -> None:
    """Raise ConfigError for a target that nobody registered."""
    known = {*TARGETS, *VALUE_TARGETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            "training.response_targets",
            expected=" or ".join(sorted(known)),
            found=", ".join(unknown),
            remedy="Remove what is not known.",
        )


def time_cut(assigned_at: npt.NDArray[np.datetime64], share: float) -> np.datetime64 | None:
    """The first moment of the last `share` of the exposures, at a campaign's start; None where
    all were assigned at one moment."""
    moments = np.unique(assigned_at)
    if len(moments) < 2:
        return None
    left = np.array([(assigned_at >= m).mean() for m in moments[1:]])
    first = int(np.argmax(left <= max(share, left[-1])))
    cut: np.datetime64 = moments[1:][first]
    return cut
