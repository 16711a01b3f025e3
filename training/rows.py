"""The rows of one training on a simulated source, for the benchmark against the truth.

Written below data/training/<name>/ and replaced by the next training. Real sources leave no such
copy of their customers behind.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from training.dataset import Dataset
from training.evaluate import Evaluation
from training.fit import Models
from training.gate import Verdict

FOLDER = Path("data/training")


def rows_path(name: str) -> Path:
    return FOLDER / name / "rows.parquet"


def save_rows(
    name: str,
    run_id: str,
    digest: str,
    dataset: Dataset,
    models: Models,
    evaluation: Evaluation,
    verdict: Verdict,
) -> Path:
    """One row per exposure: exposure_id, is_test, encoded features `x_<feature>`, response
    probability, and for test rows `policy|<name>|<arm>`, the probability of each arm under each
    policy. The reported gains stand in the file's metadata."""
    data = dataset.training
    frame = pd.DataFrame(
        {"exposure_id": dataset.exposure, "customer_id": data.customer, "is_test": models.is_test}
    )
    columns = {f"x_{f}": data.X[:, i] for i, f in enumerate(data.schema.names)}
    policies = {c.name: c.value for c in evaluation.candidates}
    policies |= dict(evaluation.rivals)
    policies[f"served:{verdict.policy}"] = verdict.value
    for policy, value in policies.items():
        for k, arm in enumerate(data.arms):
            column = np.full(len(data), np.nan, dtype=np.float32)
            column[models.is_test] = value.policy[:, k]
            columns[f"policy|{policy}|{arm}"] = column
    frame = pd.concat([frame, pd.DataFrame(columns)], axis=1)
    report = {
        "run_id": run_id,
        "source_digest": digest,
        "served": f"served:{verdict.policy}",
        "arms": list(data.arms),
        "categorical": sorted(data.schema.levels),
        "budget_per_row": evaluation.budget_per_row,
        "policies": {
            policy: {"gain": value.gain.to_json(), "spend": value.predicted_spend}
            for policy, value in policies.items()
        },
    }
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({b"report": json.dumps(report).encode()})
    path = rows_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    pq.write_table(table, aside)
    os.replace(aside, path)
    return path
