"""The flights example's sources, prepared once for all tests of a run, and DuckDB over them in UTC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from definitions.flights._prepare import PreparedSources, prepare, read_csv

Ask = Callable[[str], list[tuple[Any, ...]]]
"""SQL -> rows."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder whose `data/` the fixture `sources` fills."""
    return tmp_path_factory.mktemp("flights")


@pytest.fixture(scope="session")
def sources(repository: Path) -> PreparedSources:
    return prepare(repository / "data")


@pytest.fixture(scope="session")
def ask(sources: PreparedSources) -> Iterator[Ask]:
    """Rows of a query; `flights`, `legs`, ... are the prepared sources, `raw_*` the published tables."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in sources.rows:
            connection.execute(f"CREATE VIEW {name} AS FROM '{getattr(sources, name)}'")
        for name in ("flights", "weather", "planes", "airports"):
            connection.register(f"raw_{name}", read_csv(name))
        yield lambda query: connection.execute(query).fetchall()
