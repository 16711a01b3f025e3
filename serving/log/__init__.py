"""The decision log: what was decided, promised and reported, durably, in SQLite or PostgreSQL."""
