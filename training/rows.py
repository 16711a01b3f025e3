"""The rows of one training on a simulated source, for the benchmark against the truth.

Written below data/training/<name>/ and replaced by the next training. Real sources leave no such
copy of their customers behind.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.config import Config
from training.dataset import Dataset
from training.evaluate import Evaluation, predict
from training.fit import Models
from training.gate import Verdict
from uplift.data import FloatArray
from uplift.planning import PLAN

FOLDER = Path("data/training")


def rows_path(name: str) -> Path:
    return FOLDER / name / "rows.parquet"


def save_rows(
    config: Config,
    run_id: str,
    digest: str,
    dataset: Dataset,
    models: Models,
    evaluation: Evaluation,
    verdict: Verdict,
) -> Path:
    """One row per exposure: exposure_id, is_test, cluster, the code of its arm, what was paid,
    encoded features `x_<feature>`, and for test rows `policy|<name>|<arm>`, the probability of each
    arm under each policy, `reward|<arm>`, `cost|<arm>` and `response`, what the served bundle
    predicts. The reported gains and the plan stand in the file's metadata."""
    data, test = dataset.training, models.is_test
    frame = pd.DataFrame(
        {
            "exposure_id": dataset.exposure,
            "customer_id": data.customer,
            "is_test": test,
            "cluster": data.cluster,
            "arm": data.arm,
            "paid": data.cost,
        }
    )
    columns = {f"x_{f}": data.X[:, i] for i, f in enumerate(data.schema.names)}
    served = predict(verdict.bundle, models)

    def held_out(values: FloatArray, kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
        column = np.full(len(data), np.nan, dtype=kind)
        column[test] = values
        return column

    columns["response"] = held_out(served.response, np.float64)
    for k, arm in enumerate(data.arms):
        columns[f"reward|{arm}"] = held_out(served.reward[:, k], np.float64)
        columns[f"cost|{arm}"] = held_out(served.cost[:, k], np.float64)
    policies = {c.name: c.value for c in evaluation.candidates}
    policies |= dict(evaluation.rivals)
    policies[f"served:{verdict.policy}"] = verdict.value
    for policy, value in policies.items():
        for k, arm in enumerate(data.arms):
            columns[f"policy|{policy}|{arm}"] = held_out(value.policy[:, k], np.float32)
    frame = pd.concat([frame, pd.DataFrame(columns)], axis=1)
    report = {
        "run_id": run_id,
        "source_digest": digest,
        "served": f"served:{verdict.policy}",
        "arms": list(data.arms),
        "categorical": sorted(data.schema.levels),
        "budget_per_row": evaluation.budget_per_row,
        "offered": list(verdict.bundle.offered),
        "rival_arms": dict(evaluation.rival_arms),
        "min_profit": config.policy.min_incremental_profit,
        "plan": verdict.bundle.info[PLAN],
        "policies": {
            policy: {"gain": value.gain.to_json(), "spend": value.predicted_spend}
            for policy, value in policies.items()
        },
    }
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({b"report": json.dumps(report).encode()})
    path = rows_path(config.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    pq.write_table(table, aside)
    os.replace(aside, path)
    return path
