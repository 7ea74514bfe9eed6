"""What runs in the server, each in one atomic step on the hash of one bucket (docs/online-format.md).

A hash holds the rows of a view in a bucket, by key, and under the empty name the bucket's token. Numbers in Lua are
exact to 2^53, and so is a token, which counts microseconds. `unpack` fails on thousands of values: 256 rows at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from featurestore.online.row_layout import ORDER_KEY_BYTES

#: The field of a hash that holds the token. No key is empty.
TOKEN = b""
#: Keys that one call of a script over many hashes takes: it holds the server for less than a millisecond.
KEYS_MAX = 1000

assert ORDER_KEY_BYTES == 24, "LATER compares so many bytes, 6 at a time"


@dataclass(frozen=True)
class Script:
    """A Lua script, named in the server by its digest."""

    source: str

    @cached_property
    def sha(self) -> bytes:
        """How EVALSHA calls it."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest().encode()


# Lua compares strings in the server's locale, so order keys are compared as four numbers of 48 bits.
_LATER = """
local numbers = struct.unpack
local function differs(row, stored)
  if #stored < 24 then return true end
  local a, b, c, d = numbers('>I6I6I6I6', row)
  local e, f, g, h = numbers('>I6I6I6I6', stored)
  if a ~= e then return a > e end
  if b ~= f then return b > f end
  if c ~= g then return c > g end
  return d > h
end
"""

_OTHER = """
local function differs(row, stored) return row ~= stored end
"""

# A token is the time of the change, or one more than the last. So it rises when the clock is set back, and after a
# flush, or a failover that lost writes, no token is given a second time.
_TOKEN = """
local time = redis.call('TIME')
local function raised(token)
  return string.format('%.0f', math.max(time[1] * 1000000 + time[2], (tonumber(token or 0) or 0) + 1))
end
"""

# ARGV: key, row, key, row, ... No key occurs twice. The token goes in with the first rows, in one command.
_KEEP = """
local key, call, kept = KEYS[1], redis.call, 0
for first = 1, #ARGV, 512 do
  local last = math.min(first + 511, #ARGV)
  local fields, count = {''}, 1
  for i = first, last, 2 do
    count = count + 1
    fields[count] = ARGV[i]
  end
  local stored = call('HMGET', key, unpack(fields, 1, count))
  local changes, size = {'', false}, 2
  for i = 2, count do
    local row = ARGV[first + 2 * i - 3]
    if not stored[i] or differs(row, stored[i]) then
      changes[size + 1] = fields[i]
      changes[size + 2] = row
      size = size + 2
    end
  end
  if size > 2 then
    changes[2] = raised(stored[1])
    call('HSET', key, unpack(changes, 1, size))
    kept = kept + size / 2 - 1
  end
end
return kept
"""

WRITE = Script(_LATER + _TOKEN + _KEEP)
OVERWRITE = Script(_OTHER + _TOKEN + _KEEP)

# ARGV: keys, none twice. The token rises first: who may not raise it shall not remove rows either.
DELETE = Script(
    _TOKEN
    + """
local key, call = KEYS[1], redis.call
local deleted = 0
for first = 1, #ARGV, 256 do
  local last = math.min(first + 255, #ARGV)
  local stored = call('HMGET', key, '', unpack(ARGV, first, last))
  local found = {}
  for i = first, last do
    if stored[i - first + 2] then found[#found + 1] = ARGV[i] end
  end
  if #found > 0 then
    call('HSET', key, '', raised(stored[1]))
    deleted = deleted + call('HDEL', key, unpack(found))
  end
end
return deleted
"""
)

# The token stays, so that no cache keeps a row; memory is given back aside (UNLINK), however many rows there were.
DROP = Script(
    _TOKEN
    + """
local key, call = KEYS[1], redis.call
local token = call('HGET', key, '')
local rows = call('HLEN', key)
if token then rows = rows - 1 end
if rows > 0 then
  call('HSET', key, '', raised(token))
  token = call('HGET', key, '')
  call('UNLINK', key)
  call('HSET', key, '', token)
end
return rows
"""
)

# KEYS and ARGV in pairs. Only where one server holds every bucket; a Cluster is asked with HMGET.
READ = Script("""
local found, call = {}, redis.call
for i = 1, #KEYS do found[i] = call('HGET', KEYS[i], ARGV[i]) end
return found
""")

COUNT = Script("""
local rows, call = 0, redis.call
for i = 1, #KEYS do rows = rows + call('HLEN', KEYS[i]) - call('HEXISTS', KEYS[i], '') end
return rows
""")

SCRIPTS = (WRITE, OVERWRITE, DELETE, DROP, READ, COUNT)
