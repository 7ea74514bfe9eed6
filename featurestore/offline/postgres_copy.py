"""Arrow tables into Postgres and out of it, by binary COPY."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pyarrow as pa
from psycopg import sql

from featurestore.offline.postgres_connection import Connection
from featurestore.offline.postgres_rows import HEADER, TRAILER, decode_rows, encode_rows, sent

#: Rows decoded at once where the caller does not say.
BATCH_ROWS = 65_536


def copy_in(connection: Connection, table: str, rows: pa.Table) -> None:
    """Rows into a temporary table, by binary COPY."""
    columns = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
    statement = sql.SQL("COPY pg_temp.{} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(table), columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in encode_rows(rows):
            copy.write(piece)


@contextmanager
def sent_rows(connection: Connection, query: str | sql.Composable, schema: pa.Schema) -> Iterator[psycopg.Copy]:
    """The rows of a query as messages of binary COPY; its columns are those of `schema`, by place."""
    columns = [
        sql.SQL("CAST({} AS {})").format(sql.Identifier(field.name), sql.SQL(kind))
        if (kind := sent(field.type))
        else sql.Identifier(field.name)
        for field in schema
    ]
    statement = sql.SQL("COPY (SELECT {} FROM ({}) AS _query ({})) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(columns),
        sql.SQL(query) if isinstance(query, str) else query,
        sql.SQL(", ").join(map(sql.Identifier, schema.names)),
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield copy


def batches(rows: psycopg.Copy, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Record batches of at most `batch_rows` rows; Postgres sends a message a row."""
    messages: list[bytes] = []
    for number, message in enumerate(rows):
        row = bytes(message) if number else bytes(message)[len(HEADER) :]
        if not row or row == TRAILER:
            continue
        messages.append(row)
        if len(messages) == batch_rows:
            yield decode_rows(messages, schema)
            messages = []
    if messages:
        yield decode_rows(messages, schema)


def queried(connection: Connection, query: str | sql.Composable, schema: pa.Schema) -> pa.Table:
    """The rows of a query; its columns are those of `schema`, by place."""
    with sent_rows(connection, query, schema) as rows:
        return pa.Table.from_batches(batches(rows, schema, BATCH_ROWS), schema)
