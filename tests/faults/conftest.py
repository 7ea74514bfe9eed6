"""The small repository for all tests of faults."""

from __future__ import annotations

from tests.fix_repository import repository

__all__ = ["repository"]
