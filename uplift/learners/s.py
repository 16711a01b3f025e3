"""S-learner: one model of the outcome with the arm as a feature (Kuenzel et al. 2019)."""

from __future__ import annotations

import numpy as np

from uplift.boosting import Binned, cross_fit
from uplift.effects import BoosterTerm, EffectModel, Term
from uplift.learners.base import Learner, Models, learner
from uplift.nuisances import Problem


@learner
class SLearner(Learner):
    """tau_k = f(x, k) - f(x, 0). Shrinks towards no effect: calm under the null, and exactly 0
    where no split on the arm pays."""

    name = "s"
    title = "S: one model, arm as a feature"
    nuisances = frozenset()
    cannot = frozenset({"monotone"})

    def cross_fit(self, problem: Problem) -> Models:
        data, arms = problem.data, problem.data.n_arms
        indicators = np.zeros((len(data), arms), dtype=np.float32)
        treated = data.arm > 0
        indicators[treated, data.arm[treated] - 1] = 1
        wide = Binned(
            np.hstack([data.X, indicators]), data.schema.categorical, problem.settings.threads
        )
        fitted = cross_fit(
            wide,
            np.arange(len(data)),
            problem.target,
            problem.fold,
            problem.settings,
            weight=data.weight_of(np.arange(len(data))),
            binary=problem.binary,
        )
        effects = [self._effects(model, arms) for model in (*fitted.models, fitted.full)]
        return tuple(effects[:-1]), effects[-1]

    @staticmethod
    def _effects(model: EffectModel, arms: int) -> EffectModel:
        terms: list[tuple[Term, np.ndarray]] = []
        for term, _ in model.terms:
            assert isinstance(term, BoosterTerm)
            for k in range(arms + 1):
                code = tuple(1.0 if j + 1 == k else 0.0 for j in range(arms))
                weights = -np.ones(arms) if k == 0 else np.eye(arms)[k - 1]
                terms.append((BoosterTerm(term.booster, term.link, code), weights))
        return EffectModel(np.zeros(arms), tuple(terms))
