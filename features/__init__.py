"""Table contracts, sources, feature definitions, the one as-of filter, and segments.

Knows nothing of models, MLflow or HTTP.
"""
