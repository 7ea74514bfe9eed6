"""Servers that tests of every folder share."""

from __future__ import annotations

from tests.fix_postgres import postgres, postgres_server, postgres_shared
from tests.fix_redis import redis_farm

__all__ = ["postgres", "postgres_server", "postgres_shared", "redis_farm"]
