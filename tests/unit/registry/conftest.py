"""What the registry tests share: repositories written from text, and definitions to vary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from featurestore.registry.registry import Registry, open_state
from featurestore.registry.state import StateStore
from tests.fix_postgres import drop_schema


@pytest.fixture
def write_files(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Writes files below a fresh repository folder and returns the folder."""

    def write(files: Mapping[str, str]) -> Path:
        root = tmp_path / "repository"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")
        return root

    return write


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a registry may be made, nothing there yet: a file, or (see `on_both`) a database."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return tmp_path / "data" / "registry.db"
    url: str = request.getfixturevalue("postgres_shared")
    for project in ("shop", "other"):
        drop_schema(url, f"_registry_{project}")
    return url


@pytest.fixture
def opened(where: Path | str) -> Iterator[tuple[Registry, StateStore]]:
    """An empty registry and its job state."""
    registry, state = open_state(where, "shop")
    yield registry, state
    registry.close()


@pytest.fixture
def state(opened: tuple[Registry, StateStore]) -> StateStore:
    """Empty job state."""
    return opened[1]
