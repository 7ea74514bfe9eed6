"""The small repository and a receiver for all tests of freshness."""

from __future__ import annotations

from tests.fix_receiver import dead_address, receiver
from tests.fix_repository import repository

__all__ = ["dead_address", "receiver", "repository"]
