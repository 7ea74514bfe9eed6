"""What the registry tests share: repositories written from text, and definitions to vary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from featurestore.registry.registry import Registry, open_state
from featurestore.registry.state import StateStore


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
def opened(tmp_path: Path) -> Iterator[tuple[Registry, StateStore]]:
    """Registry and job state in a fresh file."""
    registry, state = open_state(tmp_path / "data" / "registry.db", "shop")
    yield registry, state
    registry.close()


@pytest.fixture
def state(opened: tuple[Registry, StateStore]) -> StateStore:
    """Job state in a fresh file."""
    return opened[1]
