"""Sources: files in the order of their paths, SQL that answers the same every time, faults that name the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FileSource, SqlSource
from featurestore.digest import content_digest
from featurestore.errors import SourceError
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.sources import read_files, read_sql, source_files


def write(path: Path, rows: pa.Table, *, chunk: int | None = None) -> Path:
    """Write a table in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(rows, path, row_group_size=chunk)
        case ".csv":
            import pyarrow.csv as pa_csv

            pa_csv.write_csv(rows, path)
        case ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=chunk)
        case _:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=chunk)
    return path


def numbers(start: int, stop: int) -> pa.Table:
    return pa.table({"n": pa.array(range(start, stop), pa.int64())})


def file_source(path: str) -> FileSource:
    return FileSource(path=path, timestamp_field="t")


def sql_source(query: str, inputs: dict[str, str], **changes: Any) -> SqlSource:
    return SqlSource(query=query, inputs=inputs, timestamp_field="t", **changes)


def read(root: Path, source: FileSource | SqlSource, batch_rows: int = 1000) -> list[SourceBatch]:
    if isinstance(source, SqlSource):
        return list(read_sql(source, root, batch_rows))
    return list(read_files(source_files(source, root), batch_rows))


def column(batches: Sequence[SourceBatch], name: str = "n") -> list[Any]:
    return [value for batch in batches for value in batch.rows.column(name).to_pylist()]


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow", "feather"])
def test_batches_are_bounded_and_know_where_their_rows_stand(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"a.{suffix}", numbers(0, 100), chunk=30)
    batches = read(tmp_path, file_source(f"a.{suffix}"), batch_rows=7)
    assert [int(value) for value in column(batches)] == list(range(100))
    assert max(batch.rows.num_rows for batch in batches) == 7
    assert np.concatenate([batch.row_numbers for batch in batches]).tolist() == list(range(100))
    assert {batch.source for batch in batches} == {f"a.{suffix}"}
    assert {batch.text for batch in batches} == {suffix == "csv"}


def test_a_folder_is_read_by_path_and_only_its_known_formats(tmp_path: Path) -> None:
    for number, name in enumerate(["a/z.parquet", "a.parquet", "b/a.parquet", "b/b/c.parquet"]):
        write(tmp_path / "data" / name, numbers(number, number + 1))
    (tmp_path / "data" / "_SUCCESS").write_text("")
    (tmp_path / "data" / "notes.txt").write_text("")
    batches = read(tmp_path, file_source("data"))
    assert [batch.source for batch in batches] == [
        f"data/{name}" for name in ("a/z.parquet", "a.parquet", "b/a.parquet", "b/b/c.parquet")
    ]
    assert [batch.row_numbers.tolist() for batch in batches] == [[0]] * 4


def test_a_glob_is_read_by_path(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.parquet", numbers(number, number + 1))
    write(tmp_path / "other.parquet", numbers(9, 10))
    assert column(read(tmp_path, file_source("part-*.parquet"))) == [0, 1, 2]


def test_absolute_paths_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "elsewhere" / "a.parquet", numbers(0, 3))
    repository = tmp_path / "repository"
    repository.mkdir()
    (batch,) = read(repository, file_source(str(path)))
    assert (batch.source, column([batch])) == (str(path), [0, 1, 2])


def test_equal_content_has_an_equal_digest_and_a_changed_byte_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", numbers(0, 3))
    write(tmp_path / "b.parquet", numbers(0, 3))
    write(tmp_path / "c.parquet", numbers(1, 4))
    a, b, c = (source_files(file_source(f"{name}.parquet"), tmp_path)[0] for name in "abc")
    assert (a.size, a.digest) == (b.size, b.digest)
    assert a.digest != c.digest


def test_csv_cells_are_text_quoted_empty_is_not_null_and_cells_may_span_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa,b\n1,""\n007,\nNA,"x\n""y"""\n')
    (batch,) = read(tmp_path, file_source("a.csv"))
    assert batch.rows.schema == pa.schema([("a", pa.string()), ("b", pa.string())])
    assert batch.rows.to_pydict() == {"a": ["1", "007", "NA"], "b": ["", None, 'x\n"y"']}


def test_a_csv_cell_may_span_lines_where_a_block_ends(tmp_path: Path) -> None:
    count = 120_000
    lines = b"".join(b'%d,"%s\n%s"\n' % (row, b"x" * 30, b"y" * 31) for row in range(count))
    (tmp_path / "a.csv").write_bytes(b"n,s\n" + lines)
    batches = read(tmp_path, file_source("a.csv"), batch_rows=50_000)
    assert column(batches) == [str(row) for row in range(count)]
    assert set(column(batches, "s")) == {"x" * 30 + "\n" + "y" * 31}


def test_csv_text_that_is_no_utf8_is_left_to_the_gate(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xff\n2,x\n")
    (batch,) = read(tmp_path, file_source("a.csv"))
    assert batch.rows.column("b").cast(pa.binary()).to_pylist() == [b"\xff", b"x"]


def test_a_csv_of_a_header_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n")
    assert sum(batch.rows.num_rows for batch in read(tmp_path, file_source("a.csv"))) == 0


# ------------------------------------------------------------------ files that cannot be read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 this is none PAR1"),
        ("a.parquet", b"\0" * 5000),
        ("a.csv", b""),
        ("a.csv", b"a,b\n1,2\n3\n"),
        ("a.arrow", b""),
        ("a.arrow", b"ARROW1 this is none"),
        ("a.feather", b"this is no stream of arrow"),
    ],
    ids=["empty parquet", "no parquet", "zeros", "empty csv", "ragged csv", "empty arrow", "no arrow", "no stream"],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} cannot be read: "):
        read(tmp_path, file_source(name))
    if name != "a.csv" or content:  # to DuckDB an empty file is a table without rows
        with pytest.raises(SourceError):
            read(tmp_path, sql_source("SELECT * FROM x", {"x": name}))


def test_a_parquet_file_damaged_in_the_middle_or_cut_off_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", numbers(0, 100_000), chunk=10_000)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + b"\0" * 60_000 + whole[63_000:])
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read"):
        read(tmp_path, file_source("a.parquet"))
    with pytest.raises(SourceError, match=r"the SQL source failed.*a\.parquet"):
        read(tmp_path, sql_source("SELECT * FROM x", {"x": "a.parquet"}))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read"):
        read(tmp_path, file_source("a.parquet"))


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SourceError, match=r"a\.json is of no known format; read are: \.parquet"):
        read(tmp_path, file_source("a.json"))


@pytest.mark.parametrize("path", ["a.parquet", "none/*.parquet", "empty"])
def test_a_source_without_files_is_refused_with_its_path(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="names no file below"):
        source_files(file_source(path), tmp_path)
    with pytest.raises(SourceError, match="names no file below"):
        read(tmp_path, sql_source("SELECT 1", {"x": path}))


# ------------------------------------------------------------------ SQL


def test_sql_reads_every_format_over_named_inputs(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.parquet", numbers(0, 2))
    write(tmp_path / "p" / "b.parquet", numbers(2, 4))
    write(tmp_path / "c.csv", numbers(4, 5))
    write(tmp_path / "a.arrow", numbers(5, 6))
    query = "SELECT n FROM p UNION ALL SELECT n FROM c UNION ALL SELECT n FROM a ORDER BY n"
    batches = read(tmp_path, sql_source(query, {"p": "p", "c": "c.csv", "a": "a.arrow"}))
    assert column(batches) == [0, 1, 2, 3, 4, 5]
    assert {batch.source for batch in batches} == {"SQL over p, c, a"}


def test_batches_of_sql_are_bounded_and_numbered(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", numbers(0, 10_000))
    batches = read(tmp_path, sql_source("SELECT n FROM x", {"x": "a.parquet"}), batch_rows=3000)
    assert max(batch.rows.num_rows for batch in batches) <= 3000
    assert np.concatenate([batch.row_numbers for batch in batches]).tolist() == list(range(10_000))


def test_sql_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    count = 300_000
    write(tmp_path / "a.parquet", pa.table({"k": random.integers(0, 500, count), "x": random.normal(size=count)}))
    query = "SELECT k, avg(x) AS mean, sum(x) AS total, first(x) AS any FROM t GROUP BY k"
    source = sql_source(query, {"t": "a.parquet"})
    digests = {content_digest(pa.concat_tables([b.rows for b in read(tmp_path, source)])) for _ in range(3)}
    assert len(digests) == 1


def test_quoted_empty_cells_mean_the_same_in_sql_as_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,""\n2,\n3,x\n')
    batches = read(tmp_path, sql_source("SELECT * FROM x ORDER BY a", {"x": "a.csv"}))
    assert column(batches, "b") == ["", None, "x"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT nope FROM x", 'Referenced column "nope" not found'),
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM y", "y"),
        ("SELECT CAST('x' || n AS INT) AS n FROM x", "Could not convert"),
        ("SELECT CASE WHEN n = 9000 THEN CAST('x' || n AS INT) ELSE 1 END AS n FROM x", "Could not convert"),
        ("SELECT list(repeat('x', 1000000) || n) AS n FROM x WHERE n < 700", "Out of Memory"),
    ],
    ids=["column", "syntax", "table", "first row", "late row", "memory"],
)
def test_a_query_that_fails_says_so_in_the_engines_words(query: str, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", numbers(0, 10_000))
    with pytest.raises(SourceError, match="the SQL source failed: ") as caught:
        read(tmp_path, sql_source(query, {"x": "a.parquet"}), batch_rows=1000)
    assert words in str(caught.value)
    assert query[:40] in str(caught.value)


def test_an_input_of_several_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", numbers(0, 1))
    write(tmp_path / "in" / "a.csv", numbers(0, 1))
    with pytest.raises(SourceError, match="input 'x' mixes csv and parquet files"):
        read(tmp_path, sql_source("SELECT * FROM x", {"x": "in"}))
