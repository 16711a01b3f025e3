"""Feature snapshot, verified model loading, scorer and FastAPI app. Knows nothing of training."""
