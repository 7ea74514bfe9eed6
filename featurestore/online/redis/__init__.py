"""The online store on Redis 7 or newer, or Valkey: one server or a Cluster. Redis is known nowhere else.

`store` fulfils the protocol; `scripts` is what runs in the server; `protocol` packs commands; `servers` finds out who
holds a bucket; `exchange` carries commands there and back; `faults` turns what goes wrong into our words.
"""

from featurestore.online.redis.servers import RedisAddress
from featurestore.online.redis.store import RedisOnlineStore

__all__ = ["RedisAddress", "RedisOnlineStore"]
