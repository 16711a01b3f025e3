"""Arms, learners, response models, evaluation core, offers, costs, allocation, the saved bundle.

Knows nothing of tables, MLflow, HTTP, or files other than the bundle.
"""
