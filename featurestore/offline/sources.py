"""Reads sources: Parquet, CSV and Arrow files in batches, and SQL over such files.

Files are read in the order of their paths and rows in the order of the file, so that the same source always gives
the same batches. Nothing is converted here; that is the gate's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from featurestore.dtypes import DType, Timestamp
from featurestore.errors import SourceError
from featurestore.ingest.canonical import Reading as SourceReading
from featurestore.ingest.canonical import convert
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.interrupts import interruptible
from featurestore.source import FileSource, Source, SqlSource

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
DIGEST_CHUNK_BYTES = 1 << 20
CSV_BLOCK_BYTES = 4 << 20
#: Read ahead of every column of a Parquet file.
PARQUET_BUFFER_BYTES = 256 << 10
SQL_MEMORY_LIMIT = "512MB"
#: A quoted cell may hold line ends, also where a block of the file ends.
_CSV_PARSE = pa_csv.ParseOptions(newlines_in_values=True)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it is now; two files with equal size and digest hold the same rows."""

    path: Path
    name: str
    size: int
    digest: str


def source_files(source: Source, repository: Path) -> list[SourceFile]:
    """Every file the source reads, by path; SourceError when there is none."""
    patterns = [source.path] if isinstance(source, FileSource) else list(source.inputs.values())
    return [_described(path, repository) for pattern in patterns for path in _expand(pattern, repository)]


def read_files(files: list[SourceFile], batch_rows: int) -> Iterator[SourceBatch]:
    """The rows of some files, at most `batch_rows` a batch; SourceError for a file that cannot be read."""
    for file in files:
        first = 0
        for rows in _tables(file.path, file.name, batch_rows):
            numbers = np.arange(first, first + rows.num_rows, dtype=np.int64)
            first += rows.num_rows
            yield SourceBatch(rows=rows, source=file.name, row_numbers=numbers, text=_format(file.path) == "csv")


def read_sql(source: SqlSource, repository: Path, batch_rows: int) -> Iterator[SourceBatch]:
    """The rows of the query, at most `batch_rows` a batch; SourceError with the engine's words when it fails."""
    first = 0
    with _sql_errors(source), _sql_connection(source, repository) as connection:
        reader = connection.sql(source.query).to_arrow_reader(batch_rows)
        for batch in reader:
            rows = pa.Table.from_batches([batch])
            numbers = np.arange(first, first + rows.num_rows, dtype=np.int64)
            first += rows.num_rows
            yield SourceBatch(rows=rows, source=f"SQL over {', '.join(source.inputs)}", row_numbers=numbers)


def read_table(path: Path, types: Mapping[str, DType] | None = None) -> pa.Table:
    """A whole file as a table (a spine, a file of keys); of CSV, columns not in `types` get what Arrow infers."""
    if not path.exists():
        raise SourceError(f"there is no file {path}")
    with _readable(str(path)):
        match _format(path):
            case "parquet":
                return pq.ParquetFile(path).read()
            case "csv":
                return _csv_table(path, types or {})
            case _:
                with _arrow_reader(path) as reader:
                    return reader.read_all()


def read_tables(path: Path, types: Mapping[str, DType], rows: int) -> Iterator[pa.Table]:
    """The same in tables of `rows` rows, the last with what is left; one without rows where the file has none.

    What Arrow infers of a CSV file is inferred from its first megabytes.
    """
    if not path.exists():
        raise SourceError(f"there is no file {path}")
    with _readable(str(path)):
        tables = _typed_csv_tables(path, types) if _format(path) == "csv" else _tables(path, str(path), rows)
        empty = True
        for table in _of_size(tables, rows):
            empty = False
            yield table
    if empty:
        yield read_table(path, types)


def _of_size(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, cut otherwise."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting)


def _csv_table(path: Path, types: Mapping[str, DType]) -> pa.Table:
    """A CSV file; the columns in `types` are read as loads read them, SourceError naming what has no exact value."""
    as_text = _csv_convert(dict.fromkeys(types, pa.string()))
    table = pa_csv.read_csv(path, parse_options=_CSV_PARSE, convert_options=as_text)
    return _typed(table, types, path, 0)


def _typed_csv_tables(path: Path, types: Mapping[str, DType]) -> Iterator[pa.Table]:
    first = 0
    with pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
        parse_options=_CSV_PARSE,
        convert_options=_csv_convert(dict.fromkeys(types, pa.string())),
    ) as reader:
        for batch in reader:
            yield _typed(pa.Table.from_batches([batch]), types, path, first)
            first += batch.num_rows


def _typed(table: pa.Table, types: Mapping[str, DType], path: Path, first: int) -> pa.Table:
    """Rows of a CSV file from number `first` on, the columns in `types` no longer as text."""
    for place, name in enumerate(table.column_names):
        if name in types:
            texts = table.column(name).combine_chunks()
            converted = convert(texts, name, types[name], SourceReading(text=True))
            if converted.faults is not None:
                row = int(np.argmax(converted.faults))
                zone = "; a time needs its zone, as in 2013-12-01T05:00:00Z" if types[name] == Timestamp else ""
                raise SourceError(
                    f"{path}, column {name!r}, row {first + row}: {texts[row]} is no exact {types[name]}{zone}"
                )
            table = table.set_column(place, name, converted.values)
    return table


def _expand(pattern: str, repository: Path) -> list[Path]:
    path = repository / pattern
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in FORMATS and p.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = sorted(p for p in repository.glob(pattern) if p.is_file()) if not Path(pattern).is_absolute() else []
    if not found:
        raise SourceError(
            f"the source {pattern!r} names no file below {repository}; write the data there, or mend the path "
            f"(read are: {', '.join(FORMATS)})"
        )
    return found


def _described(path: Path, repository: Path) -> SourceFile:
    digest = hashlib.sha256()
    with _readable(str(path)), path.open("rb") as file:
        while chunk := file.read(DIGEST_CHUNK_BYTES):
            digest.update(chunk)
    name = str(path.relative_to(repository)) if path.is_relative_to(repository) else str(path)
    return SourceFile(path=path, name=name, size=path.stat().st_size, digest=digest.hexdigest())


def _format(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise SourceError(f"{path} is of no known format; read are: {', '.join(FORMATS)}")
    return FORMATS[path.suffix]


def _tables(path: Path, name: str, batch_rows: int) -> Iterator[pa.Table]:
    with _readable(name):
        match _format(path):
            case "parquet":
                # What Arrow reads ahead it keeps until the file is closed, and a row group may be the whole file.
                with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES) as parquet:
                    for batch in parquet.iter_batches(batch_size=batch_rows):
                        yield pa.Table.from_batches([batch])
            case "csv":
                yield from _csv_tables(path, batch_rows)
            case _:
                with _arrow_reader(path) as reader:
                    for batch in _arrow_batches(reader):
                        table = pa.Table.from_batches([batch])
                        for start in range(0, table.num_rows, batch_rows):
                            yield table.slice(start, batch_rows)


def _csv_tables(path: Path, batch_rows: int) -> Iterator[pa.Table]:
    """CSV rows as text; an unquoted empty cell is null, a quoted one an empty string."""
    as_text = _csv_convert(dict.fromkeys(_csv_header(path), pa.string()))
    as_text.check_utf8 = False  # the gate says which rows are not
    with pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
        parse_options=_CSV_PARSE,
        convert_options=as_text,
    ) as reader:
        for batch in reader:
            table = pa.Table.from_batches([batch])
            for start in range(0, table.num_rows, batch_rows):
                yield table.slice(start, batch_rows)


def _csv_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        return list(pa_csv.open_csv(file, parse_options=_CSV_PARSE).schema.names)


def _csv_convert(types: dict[str, pa.DataType]) -> pa_csv.ConvertOptions:
    return pa_csv.ConvertOptions(
        column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
    )


@contextmanager
def _arrow_reader(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader]:
    # Not mapped: the pages of a large file would count as ours.
    with pa.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader:
            yield reader


def _arrow_batches(
    reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader,
) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from reader


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise SourceError(f"{name} cannot be read: {_first_line(error)}; write the file again") from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {_first_line(error)}") from error


@contextmanager
def _sql_connection(source: SqlSource, repository: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:", config={"threads": source.threads, "memory_limit": SQL_MEMORY_LIMIT})
    try:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")  # it would write to stdout
        for name, pattern in source.inputs.items():
            connection.register(name, _relation(connection, _expand(pattern, repository), name))
        yield connection
    finally:
        connection.close()


def _relation(
    connection: duckdb.DuckDBPyConnection, paths: list[Path], name: str
) -> duckdb.DuckDBPyRelation | pa.Table:
    formats = {_format(path) for path in paths}
    if len(formats) > 1:
        raise SourceError(f"input {name!r} mixes {' and '.join(sorted(formats))} files; keep one format an input")
    files = [str(path) for path in paths]
    match formats.pop():
        case "parquet":
            return connection.read_parquet(files)
        case "csv":
            # Only types are guessed: a file of another form must fail, not become one column of text.
            return connection.read_csv(
                files,  # type: ignore[arg-type]  # a list is allowed
                header=True,
                delimiter=",",
                quotechar='"',
                escapechar='"',
                allow_quoted_nulls=False,
            )
        case _:
            return pa.concat_tables([read_table(path) for path in paths])


@contextmanager
def _sql_errors(source: SqlSource) -> Iterator[None]:
    try:
        with interruptible():
            yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # a stream that breaks off raises Arrow's own
        query = " ".join(source.query.split())
        shown = query if len(query) <= 120 else query[:117] + "..."
        raise SourceError(f"the SQL source failed: {_first_line(error)}; the query begins: {shown}") from error


def _first_line(error: BaseException) -> str:
    text = str(error)
    return text.splitlines()[0] if text else type(error).__name__
