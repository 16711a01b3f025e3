"""MLflow: one parent run per training, a nested run per learner, the registered bundle."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema

from features.config import Config
from features.tables import Tables
from training.data_quality import FEATURE_PROFILE, PAGE, data_quality, feature_profile
from training.dataset import Dataset
from training.diagnostics import Diagnostics
from training.evaluate import DECIDING_METRIC, Candidate, Evaluation
from training.explanation import DECISIONS_FILE, SEGMENTS_FILE, TREE, Explanation
from training.fit import Models
from training.gate import Verdict
from training.responses import ResponseReport
from training.value import Values, values_json
from uplift.bundle import ScoringBundle
from uplift.diagnostics import Check
from uplift.scores import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORE = Path("mlruns")
CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Served:
    """A bundle to register, its policy, why it is the one, and whether it becomes champion."""

    bundle: ScoringBundle
    policy: str
    reason: str
    promote: bool


@dataclass(frozen=True)
class Registered:
    """Where a training ended: ids for the next command."""

    run_id: str
    version: str
    champion_version: str | None
    sha256: str
    uri: str


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite database below mlruns/."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}/mlflow.db"


def connect(config: Config) -> MlflowClient:
    """Point MLflow at its store and make sure that the experiment exists."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = tracking_uri()
    location = None
    if uri.startswith("sqlite:"):
        artifacts = (STORE / "artifacts").resolve()
        artifacts.mkdir(parents=True, exist_ok=True)
        location = (artifacts / config.name).as_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient()
    if client.get_experiment_by_name(config.name) is None:
        # The tag opens the experiment in the view of trained models, not of chat traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        client.create_experiment(config.name, artifact_location=location, tags=kind)
    mlflow.set_experiment(config.name)
    return client


def estimate_metrics(name: str, estimate: Estimate) -> dict[str, float]:
    """<name>, <name>_lo, <name>_hi."""
    return {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}


def log_training(
    config: Config,
    tables: Tables,
    dataset: Dataset,
    models: Models,
    evaluation: Evaluation,
    explanation: Explanation,
    diagnostics: Diagnostics,
    reports: Sequence[ResponseReport],
    verdict: Verdict,
    values: Values,
    figures: Mapping[str, Figure],
    summary: str,
) -> Registered:
    """Log everything, register the bundle, and move the aliases as the verdict says."""
    client = connect(config)
    with mlflow.start_run(run_name=f"train {config.name}") as run:
        mlflow.set_tags(_tags(config, tables, dataset, evaluation, diagnostics, verdict))
        mlflow.set_tag("mlflow.note.content", f"```\n{summary}\n```")
        mlflow.log_params(_params(config))
        mlflow.log_input(_dataset_input(tables, dataset, config), context="training")
        mlflow.log_metrics(_parent_metrics(tables, dataset, evaluation, diagnostics, verdict))
        mlflow.log_metrics(_explanation_metrics(explanation))
        mlflow.log_dict(explanation.to_json(), SEGMENTS_FILE)
        mlflow.log_dict(explanation.decisions_json(), DECISIONS_FILE)
        _log_data(tables, config)
        mlflow.log_dict(feature_profile(dataset).to_json(), FEATURE_PROFILE)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"figures/{name}")
        mlflow.log_dict(
            report_json(config, tables, dataset, evaluation, diagnostics, reports, verdict)
            | {"values": values_json(values)},
            "report.json",
        )
        mlflow.log_dict(json.loads(config.model_dump_json()), "config.json")
        for candidate in evaluation.candidates:
            _log_candidate(candidate, candidate is evaluation.chosen, tables, dataset, config)
        for report in reports:
            _log_response(report, figures)
        _log_values(values, figures)
        served = Served(verdict.bundle, verdict.policy, verdict.reason, verdict.promote)
        return _register(client, run.info.run_id, config, served)


def log_value_training(
    config: Config,
    tables: Tables,
    values: Values,
    served: Served,
    figures: Mapping[str, Figure],
    summary: str,
) -> Registered:
    """Log a training on transactions alone and register its bundle."""
    client = connect(config)
    with mlflow.start_run(run_name=f"train {config.name}") as run:
        mlflow.set_tags(
            {
                "gate.verdict": "champion",
                "gate.policy": served.policy,
                "gate.reason": served.reason,
                "data.simulated": str(tables.simulated).lower(),
                "data.digest": tables.digest,
                "currency": config.currency,
                **{
                    f"note{i}": note[:4000]
                    for i, note in enumerate([*tables.notes, *values.notes], start=1)
                },
            }
        )
        mlflow.set_tag("mlflow.note.content", f"```\n{summary}\n```")
        mlflow.log_params(_params(config))
        mlflow.log_input(_input(tables, config, {}), context="training")
        mlflow.log_metrics(_row_counts(tables))
        _log_data(tables, config)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"figures/{name}")
        mlflow.log_dict({"values": values_json(values)}, "report.json")
        mlflow.log_dict(json.loads(config.model_dump_json()), "config.json")
        _log_values(values, figures)
        return _register(client, run.info.run_id, config, served)


def _log_data(tables: Tables, config: Config) -> None:
    quality = data_quality(tables, config)
    mlflow.log_text(quality.html, PAGE)
    mlflow.log_metrics(quality.metrics)


def _tags(
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
        "chosen_learner": evaluation.chosen.name,
        "deciding_metric": DECIDING_METRIC,
        "data.simulated": str(tables.simulated).lower(),
        "data.digest": tables.digest,
        "effects": "observational" if dataset.estimated else "randomised",
        "currency": config.currency,
    }
    for i, step in enumerate(verdict.steps, start=1):
        tags[f"gate.step{i}"] = step.sentence(config.currency)
    for check in diagnostics.checks:
        tags[f"check.{_slug(check)}"] = f"{check.outcome}: {check.text}"[:4000]
    for i, note in enumerate([*tables.notes, *dataset.notes], start=1):
        tags[f"note{i}"] = note[:4000]
    return tags


def _slug(check: Check) -> str:
    return check.name.replace(" ", "_").replace("-", "_")


def _params(config: Config) -> dict[str, Any]:
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


def _dataset_input(tables: Tables, dataset: Dataset, config: Config) -> Any:
    sizes = {
        "exposures": str(len(dataset.training)),
        "features": str(len(dataset.features) + len(dataset.given)),
    }
    return _input(tables, config, sizes)


def _input(tables: Tables, config: Config, sizes: Mapping[str, str]) -> Any:
    source = CodeDatasetSource(
        tags={
            "kind": config.source.kind,
            "path": str(config.source.path),
            "simulated": str(tables.simulated).lower(),
            **sizes,
        }
    )
    # MLflow stores at most 36 characters of a digest; the whole one is a tag of the run.
    return MetaDataset(  # type: ignore[abstract]
        source, name=f"{config.name} ({config.source.kind})", digest=tables.digest[:12]
    )


def _parent_metrics(
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
    metrics |= _row_counts(tables)
    metrics |= {f"exposures_{k}": float(v) for k, v in dataset.counts.items()}
    return metrics


def _explanation_metrics(explanation: Explanation) -> dict[str, float]:
    value, name = explanation.value, explanation.model.name
    return {
        **estimate_metrics(f"{TREE}_gain_at_budget", value.gain),
        **estimate_metrics(f"{TREE}_spend_at_budget", value.spend),
        **estimate_metrics(f"{TREE}_less_{name}", explanation.difference),
    }


def _row_counts(tables: Tables) -> dict[str, float]:
    return {
        f"rows_{table}_{reason}": float(n)
        for table, counts in tables.counts.items()
        for reason, n in counts.items()
    }


def _log_candidate(
    candidate: Candidate, chosen: bool, tables: Tables, dataset: Dataset, config: Config
) -> None:
    with mlflow.start_run(run_name=candidate.name, nested=True):
        mlflow.set_tags(
            {
                "kind": "uplift learner",
                "learner": candidate.name,
                "chosen": str(chosen).lower(),
                "deciding_metric": DECIDING_METRIC,
                "data.simulated": str(tables.simulated).lower(),
            }
        )
        mlflow.log_input(_dataset_input(tables, dataset, config), context="training")
        metrics = {
            **estimate_metrics(DECIDING_METRIC, candidate.validation),
            **estimate_metrics("test_gain_at_budget", candidate.value.gain),
            **estimate_metrics("test_spend_at_budget", candidate.value.spend),
            **estimate_metrics("effect_calibration_slope", candidate.slope),
            "treated_share": candidate.value.treated_share,
            "fit_seconds": candidate.seconds,
        }
        for rival, difference in candidate.against.items():
            metrics |= estimate_metrics(f"gain_over_{rival}", difference)
        mlflow.log_metrics(metrics)
        mlflow.log_dict({"deciles": candidate.deciles}, "uplift_by_decile.json")


def _log_response(report: ResponseReport, figures: Mapping[str, Figure]) -> None:
    with mlflow.start_run(run_name=f"{report.target} ({report.held_out})", nested=True):
        mlflow.set_tags(
            {"kind": "response model", "target": report.target, "held_out": report.held_out}
        )
        metrics: dict[str, float] = {}
        for name, estimate in report.metrics.items():
            metrics |= estimate_metrics(name, estimate)
        metrics |= {"rows": report.rows, "positives": report.positives, "trees": report.rounds}
        mlflow.log_metrics(metrics)
        mlflow.log_dict({"deciles": report.deciles}, "lift_by_decile.json")
        name = f"{report.target}_{report.held_out.replace(' ', '_')}.png"
        mlflow.log_figure(figures[name], name)
        spec, files = report.model.to_files(report.target)
        mlflow.log_dict(spec, "model/manifest.json")
        for file, content in files.items():
            mlflow.log_text(content.decode(), f"model/{file}")


def _log_values(values: Values, figures: Mapping[str, Figure]) -> None:
    """A nested run per target: metrics of what is served under their own names, those of every
    candidate under `<candidate>_<metric>`, what the trees gain as `gain_over_<baseline>_...`."""
    for report in values.reports:
        with mlflow.start_run(run_name=f"{report.target} (held-out time)", nested=True):
            mlflow.set_tags(
                {
                    "kind": "value model",
                    "target": report.target,
                    "held_out": f"after {report.plan.test.isoformat()}",
                    "deciding_metric": report.deciding,
                    "served": report.served,
                    "served.reason": report.why,
                    "unit": report.unit,
                }
            )
            metrics: dict[str, float] = {}
            for kind, measured in report.metrics.items():
                for name, estimate in measured.items():
                    metrics |= estimate_metrics(f"{kind}_{name}", estimate)
            for name, estimate in report.metrics[report.served].items():
                metrics |= estimate_metrics(name, estimate)
            for kind, gains in report.gains.items():
                for name, estimate in gains.items():
                    metrics |= estimate_metrics(f"gain_over_{kind}_{name}", estimate)
            metrics |= {
                "rows": report.rows,
                "trees": report.rounds,
                "days": report.plan.days,
                "learned_days": report.plan.past.days,
            }
            mlflow.log_metrics(metrics)
            mlflow.log_dict({"deciles": report.deciles}, "deciles.json")
            mlflow.log_figure(figures[f"{report.target}.png"], f"{report.target}.png")
            spec, files = report.model.to_files()
            mlflow.log_dict(spec, "model/manifest.json")
            for file, content in files.items():
                mlflow.log_text(content.decode(), f"model/{file}")


def _register(client: MlflowClient, run_id: str, config: Config, served: Served) -> Registered:
    with tempfile.TemporaryDirectory() as folder:
        saved = served.bundle.save(Path(folder) / "bundle")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"bundle": str(Path(folder) / "bundle")},
            signature=signature(saved),
            pip_requirements=["lightgbm", "numpy", "pandas", "scikit-learn"],
            registered_model_name=config.name,
        )
    version = str(info.registered_model_version)
    for key, value in {
        "bundle_sha256": saved.sha256,
        "policy": served.policy,
        "gate.reason": served.reason,
        "run_id": run_id,
    }.items():
        client.set_model_version_tag(config.name, version, key, value)
    client.set_registered_model_alias(config.name, CHALLENGER, version)
    if served.promote:
        client.set_registered_model_alias(config.name, CHAMPION, version)
    mlflow.set_tags({"bundle_sha256": saved.sha256, "model_version": version})
    return Registered(run_id, version, _champion(client, config.name), saved.sha256, tracking_uri())


def signature(bundle: ScoringBundle) -> ModelSignature:
    """Features in, by name; missing values are allowed everywhere."""
    schemas = [bundle.schema] if bundle.values is None else [bundle.schema, bundle.values.schema]
    texts = {name: name in schema.levels for schema in schemas for name in schema.names}
    columns: list[Any] = [
        ColSpec(DataType.string if text else DataType.double, name, required=False)
        for name, text in texts.items()
    ]
    outputs: list[Any] = [
        ColSpec(DataType.float, f"{kind}_{arm}")
        for kind in ("cate", "reward", "cost")
        for arm in bundle.arms
    ]
    values = [] if bundle.values is None else list(bundle.values.models)
    outputs += [ColSpec(DataType.float, name) for name in ("response_propensity", *values)]
    return ModelSignature(Schema(columns), Schema(outputs))


def _champion(client: MlflowClient, name: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException:
        return None


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
                "calibration_slope": c.slope.to_json(),
                "deciles": c.deciles,
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
        "gate": {
            "policy": verdict.policy,
            "promote": verdict.promote,
            "reason": verdict.reason,
            "steps": [step.sentence(config.currency) for step in verdict.steps],
        },
    }
