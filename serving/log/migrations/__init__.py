"""Alembic's environment and revisions of the decision log; run by `python -m serving migrate`."""
