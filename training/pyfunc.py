"""The registered model as an MLflow pyfunc: features in, scores out.

MLflow stores this file as it is ("models from code"): loading it runs these lines and reads the
bundle, and unpickles nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from uplift.bundle import ScoringBundle, load_bundle


class ScoringModel(PythonModel):
    """Scores of a bundle as a frame: cate_<arm>, reward_<arm>, cost_<arm>, response_propensity, and
    repurchase, churn, clv as far as there are such models."""

    bundle: ScoringBundle

    def load_context(self, context: PythonModelContext) -> None:
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """(n, 3 K + 1 + value targets) float32 scores of n rows of features, named as the bundle
        names them."""
        scores = self.bundle.score(self.bundle.schema.encode(model_input))
        columns: dict[str, Any] = {}
        for kind in ("cate", "reward", "cost"):
            values = getattr(scores, kind)
            columns |= {f"{kind}_{arm}": values[:, k] for k, arm in enumerate(self.bundle.arms)}
        columns["response_propensity"] = scores.response
        if self.bundle.values is not None:
            values = self.bundle.values
            columns |= values.predict(values.schema.encode(model_input))
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(ScoringModel())
