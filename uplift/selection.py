"""Which of several candidates is taken: the combination, unless another is clearly better.

Held-out gains of good learners differ by less than their errors, so the highest of them is
mostly the luckiest. What combines the others needs no luck: it is taken unless a candidate is
better on the same held-out rows by more than chance explains, every candidate counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uplift.errors import DesignError
from uplift.scores import Estimate

# What combines others, the best first.
COMBINATIONS = ("ensemble", "average")
LEVEL = 0.05


def select(gains: Mapping[str, float], less_than: Callable[[str, str], Estimate]) -> str:
    """The name to take.

    gains      held-out gain of each candidate
    less_than  of two names: what the second gains over the first, paired on the same rows

    The first of COMBINATIONS that is a candidate is taken, unless the best of those clearly above
    it (one-sided, LEVEL divided among them all: Bonferroni) is there; without a combination, the
    highest gain. Raises DesignError without candidates.
    """
    if not gains:
        raise DesignError("there is no candidate to select from. Name learners to fit.")
    preferred = next((name for name in COMBINATIONS if name in gains), None)
    best_first = sorted(gains, key=lambda name: -gains[name])
    if preferred is None:
        return best_first[0]
    level = LEVEL / max(1, len(gains) - 1)
    for name in best_first:
        if name == preferred:
            break
        if less_than(preferred, name).lower(level) > 0:
            return name
    return preferred
