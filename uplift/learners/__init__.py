"""One learner, one file; importing the package fills the registry."""

from uplift.learners import (
    causalml_forest,
    dr,
    ensemble,
    per_conversion,
    per_redemption,
    proportional,
    r,
    s,
    t,
    two_part,
    x,
)
from uplift.learners.base import LEARNERS, Fitted, Learner, make_learner

__all__ = [
    "LEARNERS",
    "Fitted",
    "Learner",
    "causalml_forest",
    "dr",
    "ensemble",
    "make_learner",
    "per_conversion",
    "per_redemption",
    "proportional",
    "r",
    "s",
    "t",
    "two_part",
    "x",
]
