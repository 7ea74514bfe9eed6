"""A repository to serve, an operator's files, and a server behind its doors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serving.access.office import Office
from tests.unit.serving.conftest import Backend


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One for all: nobody here changes it."""
    with Backend.filled(tmp_path_factory.mktemp("backend")) as made:
        yield made


@pytest.fixture
def office(tmp_path: Path) -> Office:
    (tmp_path / "office").mkdir()
    return Office(tmp_path / "office")


@pytest.fixture
def target(backend: Backend, office: Office) -> Iterator[str]:
    with office.serve(backend) as running:
        yield running.target
