"""What the acceptance tests share: the command, and a shop that is prepared once and copied per test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.acceptance.shop import make_shop
from tests.fix_cli import cli, inside

__all__ = ["cli", "inside"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop, applied and materialized; never changed."""
    return make_shop(tmp_path_factory.mktemp("prepared") / "shop")


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the shop."""
    return Path(shutil.copytree(prepared, tmp_path / "shop"))
