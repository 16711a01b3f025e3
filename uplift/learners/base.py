"""What every learner shares: a registry, cross-fitting, and the check of its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from uplift.boosting import CrossFit
from uplift.cores import each
from uplift.data import FloatArray, IntArray
from uplift.effects import EffectModel
from uplift.errors import DesignError
from uplift.nuisances import Problem, side_by_side
from uplift.scores import Estimate, from_influence

Models = tuple[tuple[EffectModel, ...], EffectModel]


@dataclass(frozen=True)
class Fitted:
    """`oof` (n, K) effects of the training rows, each by the model that did not see its
    customer; `model`, learned from all training rows, which is what is served; `folds`, the models
    that `oof` comes from."""

    name: str
    oof: FloatArray
    model: EffectModel
    folds: tuple[EffectModel, ...]


class Learner(ABC):
    """An estimator of the effects of K arms against control.

    `nuisances` declares what it needs of the shared store (`mu`: out-of-fold arm means,
    `assignment`: the whole vector of probabilities); `outcomes`, what it can learn; `assumes`, a
    shape that it gives every effect: `proportional` (to the baseline), or none; `cannot`, what it
    is refused with (`monotone`: constraints on the effects); `ordinal`, that it reads a category as
    the position of its level in the order of the names, not as a set of levels. One that `combines`
    is made of `others`, what was fitted before it, as far as those declare that they join.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    nuisances: ClassVar[frozenset[str]]
    outcomes: ClassVar[frozenset[str]] = frozenset({"binary", "money"})
    assumes: ClassVar[str | None] = None
    cannot: ClassVar[frozenset[str]] = frozenset()
    ordinal: ClassVar[bool] = False
    combines: ClassVar[bool] = False
    joins: ClassVar[bool] = True

    def __init__(self, others: Mapping[str, Fitted] | None = None) -> None:
        self.others = dict(others or {})

    @classmethod
    def suits(cls, problem: Problem) -> bool:
        """Whether the outcome is of the shape that this learner is made for, so that it is to be
        believed before others unless held-out rows speak clearly against it."""
        return False

    @abstractmethod
    def cross_fit(self, problem: Problem) -> Models:
        """One model per fold, learned from the rows outside it, and one of all rows."""

    def fit(self, problem: Problem) -> Fitted:
        """Cross-fit. Raises DesignError for an arm without rows, and for an outcome or constraints
        that it cannot learn."""
        if problem.kind not in self.outcomes:
            raise DesignError(
                f"learner {self.name} learns {', '.join(sorted(self.outcomes))} outcomes, "
                f"found a {problem.kind} one. Leave it out of training.learners."
            )
        if problem.monotone and "monotone" in self.cannot:
            raise DesignError(
                f"learner {self.name} cannot keep monotone constraints, found some for "
                f"{', '.join(list(problem.monotone)[:5])}. Leave it out of training.learners, or "
                "the constraints out of training.monotone."
            )
        counts = np.bincount(problem.data.arm, minlength=problem.data.n_arms + 1)
        empty = [problem.data.arms[k - 1] for k in range(1, len(counts)) if counts[k] == 0]
        if empty:
            raise DesignError(
                f"no exposure has the arms {', '.join(empty[:5])}: an effect needs exposures. "
                "Remove them from `offers`, or add their exposures."
            )
        models, full = self.cross_fit(problem)
        return Fitted(self.name, self.out_of_fold(problem, models), full, models)

    def out_of_fold(self, problem: Problem, models: tuple[EffectModel, ...]) -> FloatArray:
        """(n, K) effects of the training rows, each by the model of its fold."""
        oof = np.empty((len(problem.data), problem.data.n_arms))
        for f, model in enumerate(models):
            oof[problem.fold == f] = model.at(problem.held[f])
        return oof


LEARNERS: dict[str, type[Learner]] = {}


def learner(cls: type[Learner]) -> type[Learner]:
    """Class decorator: register a learner under its name."""
    LEARNERS[cls.name] = cls
    return cls


def make_learner(name: str, others: Mapping[str, Fitted] | None = None) -> Learner:
    """The learner of that name, with what was fitted before it for one that combines; an unknown
    name lists the known ones."""
    if name not in LEARNERS:
        raise DesignError(
            f"training.learners: unknown learner {name!r}, expected {', '.join(sorted(LEARNERS))}"
        )
    return LEARNERS[name](others)


def per_arm(problem: Problem, fit_arm: Callable[[int], CrossFit]) -> Models:
    """Side by side what `fit_arm(k)` gives for each arm k = 1..K."""
    arms = range(1, problem.data.n_arms + 1)
    return side_by_side(each(problem.settings.threads, fit_arm, arms))


def weighted_mean(values: FloatArray, weight: FloatArray, cluster: IntArray) -> Estimate:
    """sum(weight * values) / sum(weight), all (n,), with its clustered standard error."""
    return ratio_of_sums(weight * values, weight, cluster)


def ratio_of_sums(above: FloatArray, below: FloatArray, cluster: IntArray) -> Estimate:
    """sum(above) / sum(below), all (n,), with the clustered standard error of a ratio (delta
    method)."""
    value = float(above.sum() / below.sum())
    return from_influence(value, (above - value * below) / below.mean(), cluster)


def shrinkage(e: Estimate) -> float:
    """max(0, 1 - se^2 / value^2): what to keep of an estimate that may well be of 0 (James & Stein
    1961, positive part, where the prior's variance comes from this one number)."""
    return max(0.0, 1.0 - (e.se / e.value) ** 2) if e.value else 0.0
