"""The small repository for all tests of parity."""

from __future__ import annotations

from tests.fix_repository import repository

__all__ = ["repository"]
