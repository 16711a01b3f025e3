"""What the chosen model does: the best shallow policy tree beside it, and why single decisions.

Nothing here decides anything: the tree is grown on the training rows after the model was chosen,
and both are valued on the held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features import registry
from features.config import Config
from training.dataset import Dataset
from training.evaluate import Candidate, Evaluation, out_of_fold, scored_rows
from training.fit import Models
from uplift.contributions import Explainer, Why
from uplift.data import FloatArray, stream
from uplift.evaluation import PolicyValue
from uplift.policy_tree import PolicyTree, fit_policy_tree
from uplift.scores import Estimate, one_hot
from uplift.segments import Segment, segments

TREE = "policy_tree"
SEGMENTS_FILE = "segments.json"
DECISIONS_FILE = "decisions_explained.json"
DEPTH = 2
# A segment has at least this share of the customers, and this many.
LEAST_SHARE, LEAST_CUSTOMERS = 0.05, 50
MOST_ROWS = 100_000
MOST_FEATURES = 30
DECISIONS = 20
BACKGROUND_ROWS = 1000


@dataclass(frozen=True)
class Explanation:
    """The policy tree beside the chosen model. Money in currency per row.

    price       shadow price of the model's own allocation on the training rows: what the tree is
                charged per currency of cost (raised where the tree would pass the budget)
    least       customers that every segment has at least
    value       of the tree on the held-out rows; `model`, the chosen candidate's there
    difference  profit of the tree less that of the model, paired
    net         the same after charging the difference in realised cost at `price`
    legend      definition of every feature in the sentences
    decisions   offers of the model to some of the held-out rows, each with its coupon
    """

    tree: PolicyTree
    segments: list[Segment]
    price: float
    least: int
    value: PolicyValue
    model: Candidate
    difference: Estimate
    net: Estimate
    legend: Mapping[str, str]
    decisions: list[tuple[str, Why]]

    def to_json(self) -> dict[str, Any]:
        return {
            "segments": [segment.to_json() for segment in self.segments],
            "smallest_segment_customers": self.least,
            "shadow_price": self.price,
            "policy_tree": _value_json(self.value),
            "model": {"learner": self.model.name, **_value_json(self.model.value)},
            "tree_less_model": self.difference.to_json(),
            "tree_less_model_net_of_cost": self.net.to_json(),
            "features": dict(self.legend),
        }

    def decisions_json(self) -> dict[str, Any]:
        return {
            "learner": self.model.name,
            "unit": "outcome",
            "decisions": [{"offer": offer, **why.to_json()} for offer, why in self.decisions],
        }


def _value_json(value: PolicyValue) -> dict[str, Any]:
    return {
        "gain": value.gain.to_json(),
        "spend": value.spend.to_json(),
        "predicted_spend": value.predicted_spend,
        "treated_share": value.treated_share,
    }


def explain(
    models: Models, dataset: Dataset, evaluation: Evaluation, config: Config
) -> Explanation:
    """Grow the tree on the training rows, and value it on the held-out rows.

    It sees out-of-fold scores alone, answers to the same budget per row as the model, and may ask
    about the features that the model itself rests on most.
    """
    train, test, chosen = models.train, models.test, evaluation.chosen
    held = out_of_fold(chosen.bundle, chosen.oof, models)
    per_row = evaluation.budget_per_row
    price = chosen.price
    on_train = scored_rows(train, models.money, models.costs.oof, models.money.mu, train.reward)
    contrast = on_train.gain.gamma[:, 1:] - on_train.gain.gamma[:, :1]
    _, code, count = np.unique(train.cluster, return_inverse=True, return_counts=True)
    rng = stream(config.training.seed, TREE)
    some = np.sort(rng.permutation(len(train))[:MOST_ROWS])
    customers: FloatArray = 1 / count[code[some]]
    least = max(LEAST_CUSTOMERS, round(LEAST_SHARE * float(customers.sum())))
    schema = train.schema
    used = [name for name, share in evaluation.importance.items() if share > 0]
    columns = [schema.names.index(n) for n in (used or schema.names)[:MOST_FEATURES]]
    tree = fit_policy_tree(
        train.X[some],
        np.where(held.allowed, contrast, 0.0)[some],
        np.where(held.allowed, held.cost, 0.0)[some],
        price=price,
        budget=None if per_row is None else per_row * len(some),
        customers=customers,
        categorical=schema.categorical,
        columns=columns,
        depth=DEPTH,
        min_leaf=least,
    )
    scored, predictions = evaluation.scored, evaluation.predictions
    policy = one_hot(tree.choice(test.X), test.n_arms) * predictions.allowed
    rival = chosen.value.policy
    charged = scored.gain.charged(scored.spend, price)
    missing = set(np.flatnonzero(np.isnan(train.X).any(axis=0)).tolist())
    found = segments(
        tree, test.X, scored.gain, predictions.allowed, schema, list(test.arms), missing
    )
    asked = dict.fromkeys(s.feature for path, _ in tree.leaves() for s, _ in path)
    return Explanation(
        tree=tree,
        segments=found,
        price=price,
        least=least,
        value=scored.value(TREE, policy, predictions.cost),
        model=chosen,
        difference=scored.gain.compare(policy, rival),
        net=charged.compare(policy, rival),
        legend={schema.names[f]: _definition(schema.names[f]) for f in asked},
        decisions=_decisions(models, evaluation, price, rng),
    )


def _decisions(
    models: Models, evaluation: Evaluation, price: float, rng: np.random.Generator
) -> list[tuple[str, Why]]:
    """Offers to held-out rows, evenly from the clearest to the closest call by what the model
    expects them to bring net of the shadow price."""
    train, test, chosen = models.train, models.test, evaluation.chosen
    p, policy = evaluation.predictions, chosen.value.policy
    net = (policy * (p.reward - price * p.cost)).sum(axis=1)
    treated = np.flatnonzero(policy.any(axis=1))
    if len(treated) == 0:
        return []
    order = treated[np.argsort(-net[treated], kind="stable")]
    rows = order[np.unique(np.linspace(0, len(order) - 1, DECISIONS).astype(int))]
    background = train.X[rng.permutation(len(train))[:BACKGROUND_ROWS]]
    arm = policy[rows].argmax(axis=1) + 1
    bundle = chosen.bundle
    explainer = Explainer(bundle.effects, background, bundle.effect_calibration)
    told = explainer.why(test.X[rows], arm, test.schema)
    return [(test.arms[k - 1], why) for k, why in zip(arm.tolist(), told, strict=True)]


def _definition(name: str) -> str:
    """The feature's line of docs/features.md."""
    feature = registry.find(name)
    return "as given" if feature is None else feature.doc


def explanation_summary(explanation: Explanation, currency: str, per: int) -> list[str]:
    """Lines for the end of a training: each segment with its size and the effect of its offer, and
    the tree's value beside the model's."""

    def shown(e: Estimate) -> str:
        return f"{e.value * per:.1f} [{e.lo * per:.1f}, {e.hi * per:.1f}]"

    lines = [
        "",
        "  in plain language: the best rule of at most "
        f"{2**DEPTH} segments of {explanation.least:,} customers or more, found on the training "
        "rows",
        f"  (size and effect on profit per {per:,} exposures, {currency}, on the held-out ones)",
    ]
    for segment in explanation.segments:
        effect = segment.effect
        told = "" if effect is None else f", {shown(effect)}"
        lines.append(f"  - {segment.sentence}  ({segment.share:.0%}{told})")
    lines += [f"    {name}: {doc}" for name, doc in explanation.legend.items()]
    tree, model = explanation.value, explanation.model
    lines += [
        f"  {'this rule':<34}gain {shown(tree.gain):<28}cost {tree.spend.value * per:,.1f}",
        f"  {model.name:<34}gain {shown(model.value.gain):<28}"
        f"cost {model.value.spend.value * per:,.1f}",
        f"  {'this rule less ' + model.name:<34}     {shown(explanation.difference):<28}"
        f"     {shown(explanation.net)} with cost charged at {explanation.price:.3f}",
    ]
    return lines
