"""What work on a DuckDB connection shares: transactions, and Arrow tables that queries know by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def registered(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> Iterator[None]:
    """`table` under a name that queries can use. After a failure it stays, until the next one takes the name:
    taking it back is a statement too, and would fail in an aborted transaction and hide the cause."""
    connection.register(name, table)
    yield
    connection.unregister(name)
