"""What the tests of validate share: a small repository, and the command in this process."""

from __future__ import annotations

from tests.fix_cli import inside
from tests.fix_repository import repository

__all__ = ["inside", "repository"]
