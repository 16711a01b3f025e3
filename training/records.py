"""What MLflow keeps of a training: tags, parameters, metrics and the report, as plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from features.config import Config
from features.tables import Tables
from training.dataset import Dataset
from training.diagnostics import Diagnostics
from training.evaluate import DECIDING_METRIC, Candidate, Evaluation
from training.explanation import TREE, Explanation
from training.gate import Verdict
from training.gate_steps import NOT_RUN
from training.responses import ResponseReport
from uplift.diagnostics import Check
from uplift.papers import PaperScore
from uplift.scores import Estimate

# Which test rows a gate judged on: counts how often they were used.
DIGEST_TAG = "gate.test_rows_digest"


def estimate_metrics(name: str, estimate: Estimate) -> dict[str, float]:
    """<name>, <name>_lo, <name>_hi."""
    return {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}


def tags(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    verdict: Verdict,
) -> dict[str, str]:
    tags = {
        "gate.verdict": "champion" if verdict.promote else "not promoted",
        "gate.policy": verdict.policy,
        "gate.reason": verdict.reason,
        DIGEST_TAG: verdict.digest,
        "gate.times_used": str(verdict.times_used),
        "gate.alpha": f"{verdict.alpha:.4g}",
        "chosen_learner": evaluation.chosen.name,
        "deciding_metric": DECIDING_METRIC,
        "data.simulated": str(tables.simulated).lower(),
        "data.digest": tables.digest,
        "effects": "observational" if dataset.estimated else "randomised",
        "currency": config.currency,
    }
    for i, step in enumerate(verdict.steps, start=1):
        tags[f"gate.step{i}"] = step.sentence()[:4000]
    for check in diagnostics.checks:
        tags[f"check.{_slug(check)}"] = f"{check.outcome}: {check.text}"[:4000]
    for i, note in enumerate([*tables.notes, *dataset.notes], start=1):
        tags[f"note{i}"] = note[:4000]
    return tags


def _slug(check: Check) -> str:
    return check.name.replace(" ", "_").replace("-", "_")


def params(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for k, v in value.items():
                walk(v, f"{key}.{k}" if key else str(k))
        else:
            flat[key] = str(value)[:500]

    walk(json.loads(config.model_dump_json(exclude={"offers"})), "")
    for offer in config.offers:
        flat[f"offers.{offer.coupon_id}"] = f"{offer.kind} {json.dumps(offer.params)}"[:500]
    return flat


def parent_metrics(
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    verdict: Verdict,
) -> dict[str, float]:
    metrics: dict[str, float] = {
        **estimate_metrics("test_gain_at_budget", verdict.value.gain),
        **estimate_metrics("test_spend_at_budget", verdict.value.spend),
        **estimate_metrics(DECIDING_METRIC, evaluation.chosen.validation),
        "treated_share": verdict.value.treated_share,
        "test_rows": float(evaluation.rows),
        "overlap_min_probability": diagnostics.overlap,
        "balance_max_abs_difference": max(
            (abs(b.difference) for b in diagnostics.balance), default=0.0
        ),
    }
    if evaluation.budget_per_row is not None:
        metrics["budget_per_customer"] = evaluation.budget_per_row
    if diagnostics.srm_p is not None:
        metrics["srm_p_value"] = diagnostics.srm_p
    metrics |= {f"check_{_slug(c)}": c.number for c in diagnostics.checks if c.number is not None}
    for arm, effect in evaluation.effects.items():
        metrics |= estimate_metrics(f"profit_effect_{arm}", effect)
    for arm, effect in evaluation.outcome_effects.items():
        metrics |= estimate_metrics(f"outcome_effect_{arm}", effect)
    for rival, difference in evaluation.chosen.against.items():
        metrics |= estimate_metrics(f"gain_over_{rival}", difference)
    metrics |= gate_metrics(verdict)
    metrics |= row_counts(tables)
    metrics |= {f"exposures_{k}": float(v) for k, v in dataset.counts.items()}
    return metrics


def gate_metrics(verdict: Verdict) -> dict[str, float]:
    """The chosen learner's steps that were run, so that runs compare by them:
    `gate<number>_<test>`, its `_bound` and `_threshold`, and `_failed`, 0 or 1."""
    metrics: dict[str, float] = {}
    for step in verdict.steps:
        if step.candidate != verdict.steps[0].candidate or step.outcome == NOT_RUN:
            continue
        # What stands in brackets (a version, the ranking) may differ between runs.
        name = f"gate{step.number}_" + re.sub(r"\W+", "_", step.test.split(" (")[0])
        numbers = {"": step.value, "_bound": step.bound, "_threshold": step.threshold}
        metrics |= {f"{name}{end}": number for end, number in numbers.items() if number is not None}
        metrics[f"{name}_failed"] = float(not step.passed)
    return metrics


def explanation_metrics(explanation: Explanation) -> dict[str, float]:
    value, name = explanation.value, explanation.model.name
    return {
        **estimate_metrics(f"{TREE}_gain_at_budget", value.gain),
        **estimate_metrics(f"{TREE}_spend_at_budget", value.spend),
        **estimate_metrics(f"{TREE}_less_{name}", explanation.difference),
    }


def row_counts(tables: Tables) -> dict[str, float]:
    return {
        f"rows_{table}_{reason}": float(n)
        for table, counts in tables.counts.items()
        for reason, n in counts.items()
    }


def candidate_metrics(candidate: Candidate) -> dict[str, float]:
    """Every number of a learner; `paper_<arm>_<score>` are for comparison with papers only."""
    metrics = {
        **estimate_metrics(DECIDING_METRIC, candidate.validation),
        **estimate_metrics("test_gain_at_budget", candidate.value.gain),
        **estimate_metrics("test_spend_at_budget", candidate.value.spend),
        **estimate_metrics("validation_calibration_slope", candidate.calibrating.slope),
        "treated_share": candidate.value.treated_share,
        "cost_ratio": candidate.calibrating.cost_ratio,
        "shadow_price": candidate.price,
        "fit_seconds": candidate.seconds,
    }
    for name, estimate in candidate.report.estimates.items():
        metrics |= estimate_metrics(name, estimate)
    for rival, difference in candidate.against.items():
        metrics |= estimate_metrics(f"gain_over_{rival}", difference)
    for arm, scores in candidate.papers.items():
        metrics |= {f"paper_{arm}_{name}": score.value for name, score in scores.items()}
    return metrics


def curves_json(candidate: Candidate) -> dict[str, Any]:
    """What the figures of a learner show, as data; currency per exposure."""
    return {
        "deciles": candidate.report.deciles,
        **candidate.report.curves,
        "gain_over_cost": candidate.gains.curve(),
    }


def papers_json(papers: Mapping[str, Mapping[str, PaperScore]]) -> dict[str, Any]:
    return {
        arm: {name: {"value": s.value, "origin": s.origin} for name, s in scores.items()}
        for arm, scores in papers.items()
    }


def report_json(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    evaluation: Evaluation,
    diagnostics: Diagnostics,
    reports: Sequence[ResponseReport],
    verdict: Verdict,
) -> dict[str, Any]:
    """The whole report as data, currency per exposure."""
    return {
        "simulated": tables.simulated,
        "notes": [*tables.notes, *dataset.notes],
        "data": {"digest": tables.digest, "rows": dict(tables.counts), **dict(dataset.counts)},
        "effects_are": "observational" if dataset.estimated else "randomised",
        "srm_p_value": diagnostics.srm_p,
        "checks": [check.to_json() for check in diagnostics.checks],
        "balance": [vars(b) for b in diagnostics.balance],
        "effects_on_profit": {k: v.to_json() for k, v in evaluation.effects.items()},
        "effects_on_outcome": {k: v.to_json() for k, v in evaluation.outcome_effects.items()},
        "budget_per_customer": evaluation.budget_per_row,
        "feature_importance": dict(evaluation.importance),
        "candidates": [
            {
                "learner": c.name,
                "chosen": c is evaluation.chosen,
                DECIDING_METRIC: c.validation.to_json(),
                "test_gain_at_budget": c.value.gain.to_json(),
                "test_spend_at_budget": c.value.spend.to_json(),
                "predicted_spend_at_budget": c.value.predicted_spend,
                "against": {k: v.to_json() for k, v in c.against.items()},
                "calibration": {
                    "validation_slope": c.calibrating.slope.to_json(),
                    "effects": c.calibrating.kind,
                    "cost_ratio": c.calibrating.cost_ratio,
                },
                "effects": {k: v.to_json() for k, v in c.report.estimates.items()},
                "deciles": c.report.deciles,
            }
            for c in evaluation.candidates
        ],
        "rivals": {k: v.gain.to_json() for k, v in evaluation.rivals.items()},
        "rival_arms": dict(evaluation.rival_arms),
        "response": [
            {
                "target": r.target,
                "held_out": r.held_out,
                "metrics": {k: v.to_json() for k, v in r.metrics.items()},
                "deciles": r.deciles,
            }
            for r in reports
        ],
        "gate": verdict.to_json(),
    }
