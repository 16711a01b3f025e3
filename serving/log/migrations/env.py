"""Run the revisions on the connection that the caller gives."""

from __future__ import annotations

from alembic import context

from serving.log.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_server_default=False,
)
with context.begin_transaction():
    context.run_migrations()
