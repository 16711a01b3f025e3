"""How near the truth a training on the simulated shop came. `make train` runs this last.

Nothing else may read the shop's truth. On the held-out exposures, at the configured budget:

    oracle      knows every customer's true effect and cost
    attainable  the same features as the models, trained on the true effects and costs
    the others  the policies that the training found, at their true value

and what the served model says each coupon costs and each budget brings (`plan_truth`).

Usage: python -m benchmarks.truth --config C
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.plan_truth import cost_lines, cost_table, plan_lines, plan_table
from features.config import Config, load_config
from features.errors import DataError, InputError
from features.sources.simulated import shop_folder
from training.rows import rows_path
from uplift.allocation import allocate
from uplift.scores import one_hot

FloatArray = npt.NDArray[np.float64]
PER = 1000
REGRESSION = {
    "objective": "regression",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_child_samples": 50,
    "verbosity": -1,
    "seed": 7,
    "deterministic": True,
    "force_row_wise": True,
}
ROUNDS = 100


@dataclass(frozen=True)
class Truth:
    """True expected effect on profit and cost, (n, K) each, per row of a training."""

    tau: FloatArray
    cost: FloatArray


@dataclass(frozen=True)
class Line:
    """A policy's true value and cost per row; what was reported of it, where it was."""

    policy: str
    value: float
    cost: float
    reported: dict[str, float] | None


def read_truth(config: Config, exposure_id: Any, arms: list[str]) -> Truth:
    """The truth of these exposures, in their order."""
    path = shop_folder(config) / "truth" / "exposures.parquet"
    if not path.is_file():
        raise DataError(
            str(path),
            expected="the truth of the simulated shop",
            found="no file",
            remedy="Run make train first.",
        )
    columns = [f"{kind}_{arm}" for kind in ("tau_profit", "cost") for arm in arms]
    frame = pq.read_table(path, columns=["exposure_id", *columns]).to_pandas()
    frame = frame.set_index("exposure_id").loc[list(exposure_id)]
    tau = frame[[f"tau_profit_{a}" for a in arms]].to_numpy(dtype=float)
    return Truth(tau, frame[[f"cost_{a}" for a in arms]].to_numpy(dtype=float))


def regress(
    X: npt.NDArray[np.float32],
    target: FloatArray,
    at: npt.NDArray[np.float32],
    categorical: list[int],
) -> FloatArray:
    """(n, K) plain regression of the true values on the features: what features can know."""
    data = lgb.Dataset(X, categorical_feature=categorical, free_raw_data=False, params=REGRESSION)
    data.construct()
    out = np.empty((len(at), target.shape[1]))
    for k in range(target.shape[1]):
        data.set_label(target[:, k])
        out[:, k] = lgb.train(REGRESSION, data, num_boost_round=ROUNDS).predict(at)
    return out


def policy_at(reward: FloatArray, cost: FloatArray, per_row: float | None) -> FloatArray:
    budget = None if per_row is None else per_row * len(reward)
    return one_hot(allocate(reward, cost, budget=budget).choice, reward.shape[1])


def read_rows(config: Config) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the last training of this configuration, and what it reported of them."""
    path = rows_path(config.name)
    if not path.is_file():
        raise DataError(
            str(path),
            expected="the rows of a training",
            found="no file",
            remedy="Run make train first.",
        )
    table = pq.read_table(path)
    return table.to_pandas(), json.loads(table.schema.metadata[b"report"])


def compare(config: Config, frame: pd.DataFrame, report: dict[str, Any]) -> list[Line]:
    """Every policy at its true value, the oracle and the attainable first."""
    arms, per_row = report["arms"], report["budget_per_row"]
    truth = read_truth(config, frame["exposure_id"], arms)
    test = frame["is_test"].to_numpy(dtype=bool)
    features = [c for c in frame.columns if c.startswith("x_")]
    X = frame[features].to_numpy(dtype=np.float32)
    categorical = [i for i, c in enumerate(features) if c[2:] in report["categorical"]]
    both = np.hstack([truth.tau, truth.cost])
    known = regress(X[~test], both[~test], X[test], categorical)
    k = len(arms)
    tau, cost = truth.tau[test], truth.cost[test]
    policies = {
        "oracle": policy_at(tau, cost, per_row),
        "attainable": policy_at(known[:, :k], np.maximum(known[:, k:], 0), per_row),
    }
    for name in report["policies"]:
        columns = [f"policy|{name}|{arm}" for arm in arms]
        policies[name] = frame.loc[test, columns].to_numpy(dtype=float)
    return [
        Line(
            name,
            float((policy * tau).sum(axis=1).mean()),
            float((policy * cost).sum(axis=1).mean()),
            report["policies"].get(name, {}).get("gain"),
        )
        for name, policy in policies.items()
    ]


def table(lines: list[Line], report: dict[str, Any], currency: str) -> str:
    attainable = next(line.value for line in lines if line.policy == "attainable")
    budget = report["budget_per_row"]
    out = [
        "",
        f"Truth of the SIMULATED shop, held-out exposures, {currency} per {PER:,}"
        + ("" if budget is None else f", budget {budget * PER:,.0f}"),
        "",
        f"  {'policy':<40}{'true value':>11}{'of attainable':>15}{'true cost':>11}"
        "   reported, 95% interval",
    ]
    for line in lines:
        share = f"{line.value / attainable:15.0%}" if attainable > 0 else f"{'':15}"
        reported = ""
        if line.reported is not None and line.policy != "no_offer":
            low, high = line.reported["lo"], line.reported["hi"]
            holds = "" if low <= line.value <= high else "  misses the truth"
            reported = (
                f"   {line.reported['value'] * PER:.1f} [{low * PER:.1f}, {high * PER:.1f}]{holds}"
            )
        out.append(
            f"  {line.policy:<40}{line.value * PER:11.1f}{share}{line.cost * PER:11.1f}{reported}"
        )
    return "\n".join(out)


def plan_and_costs(config: Config, frame: pd.DataFrame, report: dict[str, Any]) -> list[str]:
    """The tables of costs and of the plan; the latter only where the policy sends anything."""
    if "plan" not in report:
        raise DataError(
            str(rows_path(config.name)),
            expected="rows with what the served model predicts",
            found="those of an earlier version",
            remedy="Train again.",
        )
    truth = read_truth(config, frame["exposure_id"], report["arms"])
    tables = [cost_table(cost_lines(frame, truth.cost, report), config.currency)]
    plan = plan_lines(frame, truth.tau, truth.cost, report)
    return [*tables, plan_table(plan, config.currency)] if plan else tables


def log_to_mlflow(lines: list[Line], report: dict[str, Any], text: str) -> None:
    """Put the truth beside the run's own figures."""
    import mlflow

    from training.tracking import tracking_uri

    mlflow.set_tracking_uri(tracking_uri())
    values = {line.policy: line.value for line in lines}
    served = report["served"]
    with mlflow.start_run(run_id=report["run_id"]):
        mlflow.log_metrics(
            {
                "truth_oracle": values["oracle"],
                "truth_attainable": values["attainable"],
                "truth_served": values[served],
                "truth_served_of_attainable": values[served] / values["attainable"],
            }
        )
        mlflow.log_text(text, "truth.txt")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if config.source.kind != "simulated":
            return 0  # nobody knows the truth of a real shop
        frame, report = read_rows(config)
        lines = compare(config, frame, report)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = "\n\n".join(
        [table(lines, report, config.currency), *plan_and_costs(config, frame, report)]
    )
    print(text)
    if arguments.json:
        aside = arguments.json.with_suffix(".tmp")
        aside.write_text(json.dumps([vars(line) for line in lines], indent=1))
        os.replace(aside, arguments.json)
    log_to_mlflow(lines, report, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
