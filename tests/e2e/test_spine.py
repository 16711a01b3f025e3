"""The whole way on a small simulated shop: train, register, score, serve; one set of numbers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.build import build_features
from features.config import load_config
from features.frozen import FrozenValues
from features.sources import open_source
from features.spine import all_customers
from training.__main__ import main
from uplift.bundle import load_bundle

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "source.customers=2000",
    "policy.budget=200",
    "training.learners=[s, t]",
    "training.tuning.trials=1",
    "training.folds=2",
    "training.response_targets=[response]",
    "training.threads=1",
]
STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SETS = [part for text in OVERRIDES for part in ("--set", text)]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in STORES}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        # Benchmarks are no part of the installed packages: they run from the checkout.
        env=environment | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small shop was trained by the command."""
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(ROOT / "configs", folder / "configs")
    done = run("training", "train", "--config", "configs/demo-small.yaml", *SETS, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "train.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def decisions(workplace: Path) -> pd.DataFrame:
    """Everybody's scores from the command, without holdout and exploration."""
    flags = ["--holdout-share", "0", "--exploration-share", "0", "--out", "decisions.parquet"]
    done = run(
        "serving", "score", "--config", "configs/demo-small.yaml", *SETS, *flags, cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    return pq.read_table(workplace / "decisions.parquet").to_pandas()


def test_the_output_says_what_a_user_needs(workplace: Path) -> None:
    text = (workplace / "train.txt").read_text()
    for expected in ("SIMULATED", "Leaderboard", "95% intervals", "Gate", "Next:", "make mlflow"):
        assert expected in text
    assert "Traceback" not in text


def test_truth_is_told_last_and_only_by_the_benchmark(workplace: Path) -> None:
    done = run("benchmarks.truth", "--config", "configs/demo-small.yaml", *SETS, cwd=workplace)
    assert done.returncode == 0, done.stderr
    for expected in ("SIMULATED", "oracle", "attainable", "served:"):
        assert expected in done.stdout


def test_mlflow_holds_runs_metrics_with_intervals_and_the_registered_bundle(
    workplace: Path,
) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(_store(workplace), _store(workplace))
    experiment = client.get_experiment_by_name("demo-small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    parent = parents[0]
    learners = [r for r in runs if r.data.tags.get("kind") == "uplift learner"]
    assert {r.data.tags["learner"] for r in learners} == {"s", "t", "average"}
    widths = []
    for r in learners:
        low, middle, high = (
            r.data.metrics[f"validation_gain_at_budget{end}"] for end in ("_lo", "", "_hi")
        )
        assert low <= middle <= high
        widths.append(high - low)
    assert max(widths) > 0  # a learner that finds nothing sends nothing: exactly 0
    assert len(parent.inputs.dataset_inputs) == 1
    assert len(parent.inputs.dataset_inputs[0].dataset.digest) >= 8
    assert parent.data.tags["data.simulated"] == "true"
    assert {"gate.verdict", "gate.reason", "gate.step1"} <= set(parent.data.tags)
    figures = {f.path for f in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/qini_over_cost.png", "figures/uplift_by_decile.png"} <= figures
    artifacts = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"data_quality.html", "feature_profile.json", "gate.json", "story.md"} <= artifacts
    assert "tuning.csv" in artifacts
    assert parent.data.tags["tuning"].startswith("tuning: 1 trial in ")
    assert {"figures/gate.png", "figures/qini.png", "figures/toc.png"} <= figures
    assert "## Leaderboard" in parent.data.tags["mlflow.note.content"]
    assert len(parent.data.tags["gate.test_rows_digest"]) == 64
    for r in learners:
        for name in ("autoc", "qini", "uplift_at_30", "effect_calibration_slope"):
            ends = [r.data.metrics[f"{name}{end}"] for end in ("_lo", "", "_hi")]
            assert ends == sorted(ends)
        assert any(m.startswith("paper_") for m in r.data.metrics)
    assert parent.data.metrics["data_errors"] == 0
    # Everybody whom the scorer scores, as of the training: of the same data, nothing drifted.
    profile = client.download_artifacts(parent.info.run_id, "feature_profile.json", str(workplace))
    arguments = ["--config", "configs/demo-small.yaml", *SETS, "--reference", profile]
    done = run("features", "drift", *arguments, "--out", "drift.json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    drifts = json.loads((workplace / "drift.json").read_text())
    assert len(drifts["features"]) == 20
    assert {d["psi"] for d in drifts["features"]} == {0.0}
    assert drifts["customers"] == drifts["reference"]["customers"]
    version = client.get_model_version_by_alias("demo-small", "challenger")
    assert len(version.tags["bundle_sha256"]) == 64


def test_promote_shows_overrides_and_records(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a copy of the store: the other tests serve what the gate chose."""
    from mlflow.tracking import MlflowClient

    shutil.copytree(workplace / "mlruns", tmp_path / "mlruns")
    shutil.copytree(workplace / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    for name in STORES:  # MLflow sets both for this process and for its children
        monkeypatch.setenv(name, _store(tmp_path))
    client = MlflowClient(_store(tmp_path), _store(tmp_path))
    held = str(client.get_model_version_by_alias("demo-small", "champion").version)
    refused = str(client.get_model_version_by_alias("demo-small", "challenger").version)
    assert held != refused, "so small an experiment shows nothing"

    def command(*flags: str) -> tuple[int, str]:
        code = main(["promote", "--config", "configs/demo-small.yaml", *flags])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    code, told = command()
    assert code == 0
    assert f"challenger version {refused}" in told
    assert "steps failed" in told
    assert "against no offer" in told
    for flags, message in [
        (("--by", "Ada"), "expected a name and a reason"),
        (("--by", "Ada", "--reason", "x", "--version", "99"), "found '99'"),
        (("--by", "Ada", "--reason", "x", "--version", "champion"), "the number of a version"),
        (("--by", "Ada", "--reason", "x", "--rollback"), "took the place of another"),
        (("--set", "name=nobody"), "a registered model 'nobody'"),
    ]:
        code, told = command(*flags)
        assert (code, len(told.strip().splitlines())) == (2, 1), told
        assert message in told
    assert command("--by", "Ada", "--reason", "a trial")[0] == 0
    version = client.get_model_version_by_alias("demo-small", "champion")
    assert str(version.version) == refused
    assert (version.tags["promoted.by"], version.tags["promoted.reason"]) == ("Ada", "a trial")
    assert version.tags["promoted.over"] == held
    assert "promoted by Ada" in command()[1]
    assert "champion already" in command("--by", "Ada", "--reason", "again")[1]
    assert command("--by", "Ada", "--reason", "it lost", "--rollback")[0] == 0
    version = client.get_model_version_by_alias("demo-small", "champion")
    assert str(version.version) == held
    assert [p["by"] for p in json.loads(version.tags["promotions"])] == ["gate", "Ada"]


def test_the_next_training_knows_the_champion_and_the_uses_of_its_rows(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from training.tracking import MlflowHistory

    shutil.copytree(workplace / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    for name in STORES:  # MLflow sets both for this process and for its children
        monkeypatch.setenv(name, _store(tmp_path))
    history = MlflowHistory(load_config(ROOT / "configs/demo-small.yaml", OVERRIDES))
    client = MlflowClient(_store(tmp_path), _store(tmp_path))
    version = client.get_model_version_by_alias("demo-small", "champion")
    run = client.get_run(version.tags["run_id"])
    assert history.times_used(run.data.tags["gate.test_rows_digest"]) == 1
    assert history.times_used("0" * 64) == 0
    champion = history.champion()
    assert champion is not None
    assert champion.bundle is not None
    assert (champion.version, champion.bundle.sha256) == (
        str(version.version),
        version.tags["bundle_sha256"],
    )
    assert champion.bundle.info["split"] == {"seed": 7, "test_share": 0.3}
    client.set_model_version_tag("demo-small", str(version.version), "bundle_sha256", "0" * 64)
    altered = history.champion()
    assert altered is not None
    assert altered.bundle is None
    assert "altered" in altered.why_not


def test_pyfunc_command_and_http_agree_to_the_last_bit(
    workplace: Path, decisions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    config = load_config("configs/demo-small.yaml", OVERRIDES)
    tables = open_source(config).tables()
    spine = all_customers(tables, config.as_of(), config)
    bundle = load_bundle(_bundle_folder(workplace))
    frozen = FrozenValues.from_json(json.dumps(dict(bundle.frozen)))
    frame = build_features(tables, spine, bundle.features["names"], config, frozen).frame
    scored = _through_pyfunc(workplace, frame)
    assert spine["customer_id"].tolist() == decisions["customer_id"].tolist()
    for arm in bundle.arms:
        for kind in ("cate", "cost"):
            np.testing.assert_array_equal(
                scored[f"{kind}_{arm}"].to_numpy(np.float32),
                decisions[f"{kind}_{arm}"].to_numpy(np.float32),
            )
    np.testing.assert_array_equal(
        scored["response_propensity"].to_numpy(np.float32),
        decisions["response_propensity"].to_numpy(np.float32),
    )


def test_expected_cost_never_passes_the_budget(workplace: Path, decisions: pd.DataFrame) -> None:
    assert decisions["expected_cost"].sum() <= 200
    assert (decisions.loc[decisions["action"] == "none", "expected_cost"] == 0).all()
    manifest = json.loads((workplace / "decisions.parquet.manifest.json").read_text())
    assert manifest["rows"] == len(decisions)


def test_http_agrees_and_a_restarted_server_gives_the_same_decisions(
    workplace: Path, decisions: pd.DataFrame
) -> None:
    answers = []
    for start in range(2):
        with Server(workplace) as client:
            if start == 0:
                _http_equals(client, decisions.head(200))
            customers = [{"customer_id": i} for i in decisions["customer_id"][:500]]
            body = {"campaign_id": "demo-small", "customers": customers}
            answer = client.post("/v1/decisions", json=body)
            assert answer.status_code == 200
            answers.append(answer.json()["decisions"])
    stands = [d["decision_id"] for d in answers[1] if d["sticky_hit"]]
    assert len(stands) > 100
    for first, second in zip(*answers, strict=True):
        assert second == first | {k: second[k] for k in ("sticky_hit", "decision_id")}
        assert (second["decision_id"] == first["decision_id"]) == second["sticky_hit"]
    reasons = {d["reason"] for d in answers[0]}
    assert {"holdout", "no_consent", "below_threshold"} <= reasons


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.lerners=[t]", "Did you mean learners"),
        ("training.learners=[q]", "unknown learner 'q'"),
        ("source.kind=wishes", "source.kind"),
        ("offers=[]", "offers"),
    ],
)
def test_bad_configuration_ends_with_two_and_one_message(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    message: str,
) -> None:
    monkeypatch.chdir(workplace)
    assert main(["train", "--config", "configs/demo-small.yaml", *SETS, "--set", change]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


def _store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlruns/mlflow.db"


def _bundle_folder(workplace: Path) -> Path:
    """The champion's bundle, which its version's tag names."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(_store(workplace), _store(workplace))
    sha256 = client.get_model_version_by_alias("demo-small", "champion").tags["bundle_sha256"]
    (folder,) = [
        path.parent
        for path in (workplace / "mlruns").rglob("bundle/manifest.json")
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    ]
    return folder


def _through_pyfunc(workplace: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Scores of the registered model, loaded by MLflow in a process of its own."""
    frame.to_parquet(workplace / "frame.parquet")
    code = (
        "import mlflow, pandas as pd\n"
        "mlflow.set_tracking_uri('sqlite:///mlruns/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/demo-small@champion')\n"
        "frame = pd.read_parquet('frame.parquet')\n"
        "model.predict(frame).to_parquet('scored.parquet')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(workplace / "scored.parquet")


class Server:
    """The scorer in a process of its own, stopped by SIGTERM."""

    def __init__(self, workplace: Path) -> None:
        self.workplace = workplace

    def __enter__(self) -> httpx.Client:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = (self.workplace / "server.log").open("w")
        command = ["serving", "api", "--config", "configs/demo-small.yaml", "--port", str(port)]
        command += ["--drain-seconds", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *SETS],
            cwd=self.workplace,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        for _ in range(240):
            if self.process.poll() is not None:
                break
            try:
                if self.client.get("/readyz").status_code == 200:
                    return self.client
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        self.process.kill()
        raise AssertionError((self.workplace / "server.log").read_text())

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.close()


def _http_equals(client: httpx.Client, decisions: pd.DataFrame) -> None:
    arms = [c.removeprefix("cate_") for c in decisions.columns if c.startswith("cate_")]
    assert len(arms) == 4
    for row in decisions.itertuples():
        answer = client.get(f"/v1/customers/{row.customer_id}").json()
        for arm in arms:
            assert np.float32(answer["uplift"][arm]) == np.float32(getattr(row, f"cate_{arm}"))
        response = np.float32(answer["scores"]["response_propensity"])
        assert response == np.float32(row.response_propensity)
