"""Dataset building, fit, evaluation run, gate and MLflow tracking. Knows nothing of HTTP."""
