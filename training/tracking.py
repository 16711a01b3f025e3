"""MLflow: one parent run per training, a nested run per learner, the registered bundle."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.artifacts
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema

from features.config import Config
from features.tables import Tables
from training.champion import Champion
from training.data_quality import FEATURE_PROFILE, PAGE, data_quality, feature_profile
from training.dataset import Dataset
from training.diagnostics import Diagnostics
from training.evaluate import DECIDING_METRIC, Candidate, Evaluation
from training.explanation import DECISIONS_FILE, SEGMENTS_FILE, Explanation
from training.fit import Models
from training.gate import Verdict
from training.page import STORY_FILE, page, story
from training.records import (
    DIGEST_TAG,
    candidate_metrics,
    curves_json,
    estimate_metrics,
    explanation_metrics,
    papers_json,
    params,
    parent_metrics,
    report_json,
    row_counts,
    tags,
)
from training.responses import ResponseReport
from training.value import Values, values_json
from uplift.bundle import ScoringBundle, load_bundle
from uplift.errors import BundleError
from uplift.plan_report import plan_csv
from uplift.planning import PLAN, BudgetPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORE = Path("mlruns")
CHAMPION, CHALLENGER = "champion", "challenger"
GATE_FILE = "gate.json"
BUNDLE_PATH = Path("artifacts/bundle")


@dataclass(frozen=True)
class Served:
    """A bundle to register, its policy, why it is the one, and whether it becomes champion."""

    bundle: ScoringBundle
    policy: str
    reason: str
    promote: bool


@dataclass(frozen=True)
class Version:
    """A registered version, its tags, and the gate's verdict of the training that made it."""

    version: str
    registered_at: datetime
    tags: Mapping[str, str]
    gate: Mapping[str, Any]


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
        mlflow.set_tags(tags(config, tables, dataset, evaluation, diagnostics, verdict))
        told = config, tables, dataset, evaluation, diagnostics, verdict
        mlflow.set_tag("mlflow.note.content", page(*told))
        mlflow.log_text(story(*told, summary), STORY_FILE)
        mlflow.log_params(params(config))
        mlflow.log_input(_dataset_input(tables, dataset, config), context="training")
        mlflow.log_metrics(parent_metrics(tables, dataset, evaluation, diagnostics, verdict))
        mlflow.log_metrics(explanation_metrics(explanation))
        mlflow.log_dict(explanation.to_json(), SEGMENTS_FILE)
        mlflow.log_dict(explanation.decisions_json(), DECISIONS_FILE)
        _log_data(tables, verdict.bundle, config)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"figures/{name}")
        mlflow.log_dict(
            report_json(config, tables, dataset, evaluation, diagnostics, reports, verdict)
            | {"values": values_json(values)},
            "report.json",
        )
        mlflow.log_dict(verdict.to_json(), GATE_FILE)
        plan = verdict.bundle.info[PLAN]
        mlflow.log_dict(plan, "budget_plan.json")
        mlflow.log_text(plan_csv(BudgetPlan.from_json(plan)), "budget_plan.csv")
        if models.tuning is not None:
            mlflow.set_tag("tuning", models.tuning.sentence())
            mlflow.log_text(models.tuning.to_frame().to_csv(index=False), "tuning.csv")
        mlflow.log_dict(json.loads(config.model_dump_json()), "config.json")
        for candidate in evaluation.candidates:
            _log_candidate(candidate, candidate is evaluation.chosen, tables, dataset, config)
        for report in reports:
            _log_response(report, figures)
        _log_values(values, figures)
        refused = verdict.challenger.policy != verdict.policy
        if refused:
            # It stays the challenger: `promote` can still put it in the champion's place.
            name, why = verdict.challenger.policy, "the gate did not pass it"
            loser = Served(verdict.challenger, name, why, promote=False)
            _register(client, run.info.run_id, config, loser, name=CHALLENGER)
        served = Served(verdict.bundle, verdict.policy, verdict.reason, verdict.promote)
        aliases = () if refused else (CHALLENGER,)
        return _register(client, run.info.run_id, config, served, aliases=aliases)


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
        mlflow.log_params(params(config))
        mlflow.log_input(_input(tables, config, {}), context="training")
        mlflow.log_metrics(row_counts(tables))
        _log_data(tables, served.bundle, config)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"figures/{name}")
        mlflow.log_dict({"values": values_json(values)}, "report.json")
        mlflow.log_dict(json.loads(config.model_dump_json()), "config.json")
        _log_values(values, figures)
        return _register(client, run.info.run_id, config, served)


def _log_data(tables: Tables, bundle: ScoringBundle, config: Config) -> None:
    quality = data_quality(tables, config)
    mlflow.log_text(quality.html, PAGE)
    mlflow.log_metrics(quality.metrics)
    mlflow.log_dict(feature_profile(tables, bundle, config).to_json(), FEATURE_PROFILE)


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
                "effect_calibration": candidate.calibrating.kind,
                "data.simulated": str(tables.simulated).lower(),
            }
        )
        mlflow.log_input(_dataset_input(tables, dataset, config), context="training")
        mlflow.log_metrics(candidate_metrics(candidate))
        mlflow.log_dict(curves_json(candidate), "curves.json")
        if candidate.papers:
            mlflow.log_dict(papers_json(candidate.papers), "paper_scores.json")


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


def _register(
    client: MlflowClient,
    run_id: str,
    config: Config,
    served: Served,
    aliases: Sequence[str] = (CHALLENGER,),
    name: str = "model",
) -> Registered:
    """Register a bundle, logged as the run's model `name`, and move the aliases."""
    with tempfile.TemporaryDirectory() as folder:
        saved = served.bundle.save(Path(folder) / "bundle")
        info = mlflow.pyfunc.log_model(
            name=name,
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
        "gate.reason": served.reason[:4000],
        "run_id": run_id,
    }.items():
        client.set_model_version_tag(config.name, version, key, value)
    for alias in aliases:
        client.set_registered_model_alias(config.name, alias, version)
    if served.promote:
        set_champion(client, config, version, by="gate", reason=served.reason)
    mlflow.set_tags({"bundle_sha256": saved.sha256, "model_version": version})
    champion = _aliased(client, config.name, CHAMPION)
    return Registered(
        run_id,
        version,
        None if champion is None else str(champion.version),
        saved.sha256,
        tracking_uri(),
    )


def set_champion(client: MlflowClient, config: Config, version: str, by: str, reason: str) -> None:
    """Move the champion's alias to a version, and keep on it who did that, when, why, and which
    version it took the place of."""
    held = _aliased(client, config.name, CHAMPION)
    record = {
        "by": by,
        "reason": reason[:4000],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "over": "" if held is None else str(held.version),
    }
    for key, value in record.items():
        client.set_model_version_tag(config.name, version, f"promoted.{key}", value)
    # A version can come back: all of its promotions stay on record.
    before = client.get_model_version(config.name, version).tags.get("promotions", "[]")
    every = json.dumps([*json.loads(before), record])
    client.set_model_version_tag(config.name, version, "promotions", every)
    client.set_registered_model_alias(config.name, CHAMPION, version)


class MlflowHistory:
    """The champion and earlier uses of the test rows, as MLflow knows them."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def champion(self) -> Champion | None:
        client = connect(self.config)
        found = _aliased(client, self.config.name, CHAMPION)
        if found is None:
            return None
        version, at = str(found.version), _time(found.creation_timestamp)
        try:
            return Champion(version, at, load_version(self.config, version))
        except BundleError as error:
            return Champion(version, at, None, str(error))

    def times_used(self, digest: str) -> int:
        client = connect(self.config)
        experiment = client.get_experiment_by_name(self.config.name)
        assert experiment is not None  # connect makes sure of it
        condition = f"tags.`{DIGEST_TAG}` = '{digest}'"
        return len(client.search_runs([experiment.experiment_id], condition, max_results=1000))


def load_version(config: Config, version: str) -> ScoringBundle:
    """The verified bundle of a registered version; BundleError where it is missing or damaged."""
    client = connect(config)
    try:
        sha256 = client.get_model_version(config.name, version).tags["bundle_sha256"]
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{config.name}/{version}", dst_path=folder
            )
            return load_bundle(Path(path) / BUNDLE_PATH, sha256)
    except (MlflowException, KeyError, OSError) as error:
        raise BundleError(f"version {version} of {config.name} cannot be loaded: {error}") from None


def find_version(config: Config, named: str) -> Version | None:
    """A version by number, or by alias; None where there is none."""
    client = connect(config)
    try:
        found = (
            client.get_model_version(config.name, named)
            if named.isdigit()
            else client.get_model_version_by_alias(config.name, named)
        )
    except MlflowException:
        return None
    run = found.tags.get("run_id", "")
    try:
        gate = mlflow.artifacts.load_dict(f"runs:/{run}/{GATE_FILE}")
    except (MlflowException, OSError):
        gate = {}
    at = _time(found.creation_timestamp)
    return Version(str(found.version), at, dict(found.tags), gate)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


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


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None
