"""What Alembic runs: the scripts of `versions/`, on the connection and in the transaction of `database.py`."""

from __future__ import annotations

from alembic import context

from featurestore.registry.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    version_table="alembic_version",
)
with context.begin_transaction():
    context.run_migrations()
