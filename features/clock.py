"""The product-stage clock: which stage of life a purchase gives away, by its days since."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.config import StageClockConfig

GRADUATED = "graduated"


def product_stages(
    position: npt.NDArray[np.float64], clock: StageClockConfig
) -> npt.NDArray[np.object_]:
    """Stage at each position (days, the feature stage_clock_days; NaN: no anchor was bought).

    A stage holds from its first day to before its end; where two hold, the first of the file.
    Past the end of all: `graduated`. NaN, before the first, or in a gap between two: None.
    """
    found = np.full(len(position), None, dtype=object)
    found[position >= max(end for _, end in clock.stages.values())] = GRADUATED
    for name, (first, end) in reversed(clock.stages.items()):
        found[(position >= first) & (position < end)] = name
    return found
