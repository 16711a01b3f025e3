"""Trees tuned by Optuna on the held-out doubly robust loss of the effects.

The defaults need no tuning; `training.tuning` spends a budget on looking for better ones. A trial
learns the effects with other settings of the trees, with the folds, arm means and scores of the
problem as they are, so that every trial is judged by the same scores on the same rows. The trial
with the least loss is taken where it is better than the defaults by more than chance explains,
every trial counted; the luckiest of many seldom is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from features.config import TuningConfig
from uplift.boosting import Settings
from uplift.data import FloatArray
from uplift.learners import LEARNERS, make_learner
from uplift.learners.base import weighted_mean
from uplift.nuisances import Problem
from uplift.scores import Estimate
from uplift.selection import LEVEL

Progress = Callable[[str], None]
TUNED = ("num_leaves", "learning_rate", "min_child_samples", "feature_fraction", "lambda_l2")
# Slow learning needs more trees; held-out rows stop them.
MOST_ROUNDS = 400


@dataclass(frozen=True)
class Trial:
    """One choice of settings: number 0 is the defaults.

    loss  held-out doubly robust loss per row, less that of the defaults: below 0 is better
    error its standard error, paired and clustered; `seconds`, what the trial took
    """

    number: int
    num_leaves: int
    learning_rate: float
    min_child_samples: int
    feature_fraction: float
    lambda_l2: float
    loss: float
    error: float
    seconds: float


@dataclass(frozen=True)
class Trials:
    """All trials in their order, and the number of the one that was taken (0: the defaults)."""

    trials: tuple[Trial, ...]
    taken: int

    def to_frame(self) -> pd.DataFrame:
        """One row for each trial, with a column `taken`."""
        frame = pd.DataFrame([asdict(trial) for trial in self.trials])
        frame["taken"] = frame["number"] == self.taken
        return frame

    def sentence(self) -> str:
        """What a user reads."""
        seconds = sum(trial.seconds for trial in self.trials)
        best = min(self.trials, key=lambda trial: trial.loss)
        count = len(self.trials) - 1
        found = f"{count} trial{'s' * (count != 1)} in {seconds:.0f} s"
        if self.taken:
            return f"tuning: {found}, trial {best.number} is taken: {_settings_text(best)}"
        return f"tuning: {found}, none clearly better than the defaults, which stay"


def tunable(learners: Sequence[str]) -> list[str]:
    """Those whose effects depend on the settings: all but T, which is the arm means themselves,
    what combines others, and forests of others' settings."""
    return [
        name
        for name in learners
        if name != "t" and LEARNERS[name].joins and not LEARNERS[name].combines
    ]


def tune(
    problem: Problem,
    learners: Sequence[str],
    budget: TuningConfig,
    seed: int,
    progress: Progress,
) -> tuple[Problem, Trials | None]:
    """The problem with the settings that were found, and all trials.

    learners  configured names; the loss is that of the mean of the effects of those that depend on
              the settings. None of them, or no budget: the problem as it is, and no trials.
    budget    seconds, trials or both: whichever ends first. With trials alone the same seed finds
              the same settings.
    """
    names = tunable(learners)
    if not names or not (budget.seconds or budget.trials):
        return problem, None
    import optuna  # takes a second to import, and most trainings don't tune

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    started = time.monotonic()
    default = problem.settings
    space = _space(default, len(problem.data))
    # The first trial is the defaults: as near to them as what is searched allows, for the sampler.
    near = {n: min(max(getattr(default, n), low), high) for n, (low, high) in space.items()}
    study.enqueue_trial(near)
    trials: list[Trial] = []
    losses: FloatArray | None = None
    while _goes_on(trials, budget, time.monotonic() - started):
        asked = study.ask()
        suggested = _suggested(asked, default, space)
        settings = suggested if trials else default
        began = time.monotonic()
        own = _losses(problem.with_settings(settings), names)
        losses = own if losses is None else losses
        gap = _mean(problem, own - losses)
        study.tell(asked, gap.value)
        trials.append(_trial(len(trials), settings, gap, time.monotonic() - began))
        if gap.value < min((t.loss for t in trials[:-1]), default=np.inf):
            progress(f"tuning: {_line(trials[-1])}")
    best = min(trials, key=lambda trial: trial.loss)
    level = LEVEL / max(1, len(trials) - 1)
    taken = best if Estimate(best.loss, best.error).upper(level) < 0 else trials[0]
    found = Trials(tuple(trials), taken.number)
    progress(found.sentence())
    return problem.with_settings(_settings(taken, default)), found


def _goes_on(trials: Sequence[Trial], budget: TuningConfig, elapsed: float) -> bool:
    """Whether there is budget for one more trial, of the length of the longest so far."""
    if not trials:
        return True
    if budget.trials and len(trials) > budget.trials:
        return False
    longest = max(trial.seconds for trial in trials)
    return not budget.seconds or elapsed + longest <= budget.seconds


def _losses(problem: Problem, names: Sequence[str]) -> FloatArray:
    """(n,) of the mean of the learners' out-of-fold effects."""
    effects = np.mean([make_learner(name).fit(problem).oof for name in names], axis=0)
    return problem.losses(effects)


def _mean(problem: Problem, gaps: FloatArray) -> Estimate:
    return weighted_mean(gaps, problem.data.weight, problem.data.cluster)


def _space(default: Settings, rows: int) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each setting."""
    leaf = default.min_child_samples
    return {
        "num_leaves": (2, 64),
        "learning_rate": (0.02, 0.3),
        "min_child_samples": (max(5, leaf // 8), max(6, min(8 * leaf, rows // 20))),
        "feature_fraction": (0.3, 1.0),
        "lambda_l2": (0.01, 100.0),
    }


def _suggested(trial: Any, default: Settings, space: Mapping[str, tuple[float, float]]) -> Settings:
    found: dict[str, Any] = {}
    for name, (low, high) in space.items():
        if isinstance(getattr(default, name), int):
            found[name] = trial.suggest_int(name, int(low), int(high), log=True)
        else:
            found[name] = trial.suggest_float(name, low, high, log=name != "feature_fraction")
    return _with_rounds(replace(default, **found), default)


def _with_rounds(settings: Settings, default: Settings) -> Settings:
    """As many rounds as give the same sum of steps as the defaults."""
    same = math.ceil(default.rounds * default.learning_rate / settings.learning_rate)
    return replace(settings, rounds=min(max(same, default.rounds), MOST_ROUNDS))


def _settings(trial: Trial, default: Settings) -> Settings:
    if trial.number == 0:
        return default
    found: dict[str, Any] = {name: getattr(trial, name) for name in TUNED}
    return _with_rounds(replace(default, **found), default)


def _trial(number: int, settings: Settings, gap: Estimate, seconds: float) -> Trial:
    tuned = {name: getattr(settings, name) for name in TUNED}
    return Trial(number, **tuned, loss=gap.value, error=gap.se, seconds=seconds)


def _settings_text(trial: Trial) -> str:
    return (
        f"{trial.num_leaves} leaves, rate {trial.learning_rate:.3f}, "
        f"{trial.min_child_samples} rows to a leaf, {trial.feature_fraction:.0%} of the features, "
        f"l2 {trial.lambda_l2:.2g}"
    )


def _line(trial: Trial) -> str:
    if trial.number == 0:
        return f"the defaults ({_settings_text(trial)}) took {trial.seconds:.1f} s"
    loss = f"loss {trial.loss:+.4g} ({trial.error:.2g})"
    return f"trial {trial.number}: {loss}, {_settings_text(trial)}"
