"""The Redis servers of these tests."""

from tests.fix_redis import redis_farm

__all__ = ["redis_farm"]
