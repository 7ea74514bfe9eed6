"""Servers that tests of every folder share."""

from __future__ import annotations

from tests.fix_postgres import postgres, postgres_server, postgres_shared

__all__ = ["postgres", "postgres_server", "postgres_shared"]
