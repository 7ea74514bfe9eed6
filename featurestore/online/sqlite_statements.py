"""The SQL of the SQLite online store. No value or name is ever put into it: everything comes as a parameter.

A batch is one statement. `:data` holds the records one after the other (bucket, key, row), `:places` is a JSON list
with a number for each: its start << 37 | the bytes of bucket and key << 26 | the bytes of the row.
"""

from __future__ import annotations

from featurestore.online.row_layout import ORDER_KEY_BYTES

#: Bits of a place: where a record starts in the data, how long bucket and key are, how long the row is.
START_BITS, KEY_BITS, ROW_BITS = 26, 11, 26

assert (KEY_BITS + ROW_BITS, ROW_BITS) == (37, 26), "the statements below shift by these"
assert ((1 << KEY_BITS) - 1, (1 << ROW_BITS) - 1) == (2047, 67108863), "and mask with these"
assert ORDER_KEY_BYTES == 24, "and compare so many bytes"

SCHEMA = (
    "CREATE TABLE view (id INTEGER PRIMARY KEY, project TEXT NOT NULL, ref TEXT NOT NULL, UNIQUE (project, ref))",
    """
    CREATE TABLE online_row (view INTEGER NOT NULL, key BLOB NOT NULL, row BLOB NOT NULL, PRIMARY KEY (view, key))
    WITHOUT ROWID
    """,
    """
    CREATE TABLE bucket_token (
        view INTEGER NOT NULL, bucket INTEGER NOT NULL, token INTEGER NOT NULL, PRIMARY KEY (view, bucket)
    ) WITHOUT ROWID
    """,
)

ADD_VIEW = "INSERT INTO view (project, ref) VALUES (:project, :ref) ON CONFLICT DO NOTHING"
VIEW_ID = "SELECT id FROM view WHERE project = :project AND ref = :ref"

# The compare-and-set: a row replaces the stored one only if it is later. `WHERE true` keeps the parser from taking
# ON CONFLICT for a join condition.
WRITE = """
INSERT INTO online_row (view, key, row)
SELECT
    :view,
    substr(:data, 1 + (place.value >> 37), (place.value >> 26) & 2047),
    substr(:data, 1 + (place.value >> 37) + ((place.value >> 26) & 2047), place.value & 67108863)
FROM json_each(:places) AS place
WHERE true
ON CONFLICT (view, key) DO UPDATE SET row = excluded.row
WHERE substr(excluded.row, 1, 24) > substr(online_row.row, 1, 24)
"""

# The same for repair: any row that differs is replaced.
OVERWRITE = """
INSERT INTO online_row (view, key, row)
SELECT
    :view,
    substr(:data, 1 + (place.value >> 37), (place.value >> 26) & 2047),
    substr(:data, 1 + (place.value >> 37) + ((place.value >> 26) & 2047), place.value & 67108863)
FROM json_each(:places) AS place
WHERE true
ON CONFLICT (view, key) DO UPDATE SET row = excluded.row
WHERE excluded.row <> online_row.row
"""

DELETE = """
DELETE FROM online_row
WHERE view = :view
AND key IN (
    SELECT substr(:data, 1 + (place.value >> 37), (place.value >> 26) & 2047) FROM json_each(:places) AS place
)
"""

#: Added to one of the three above: the bucket of each row that was changed.
RETURNING_BUCKETS = " RETURNING substr(key, 1, 2)"

# SQLite keeps the left side of a LEFT JOIN outside, so the answers come in the order of the places.
READ = """
SELECT stored.row
FROM json_each(:places) AS place
LEFT JOIN online_row AS stored
ON stored.view = :view AND stored.key = substr(:data, 1 + (place.value >> 37), (place.value >> 26) & 2047)
"""

# A batch as one value, since Python would wait for its turn at every row: the last key unless the batch is the last,
# how long key and row are of each (bytes of the key << 26 | bytes of the row, in digits), and their bytes. The bytes
# pass for text on the way, which SQLite does not look into; lengths are cast, since others may have written text. No
# key is as short as `:end`, a bucket.
SCAN = """
WITH last AS (
    SELECT key FROM online_row WHERE view = :view AND key > :after AND key < :end ORDER BY key LIMIT 1 OFFSET :count - 1
)
SELECT
    (SELECT key FROM last),
    group_concat(length(CAST(key AS BLOB)) << 26 | length(CAST(row AS BLOB))),
    CAST(group_concat(key || row, '') AS BLOB)
FROM online_row
WHERE view = :view AND key > :after AND key <= coalesce((SELECT key FROM last), :end)
"""
COUNT = "SELECT count(*) FROM online_row WHERE view = :view"
FIRST_KEYS = "SELECT key FROM online_row WHERE view = :view ORDER BY key LIMIT :count"
DELETE_UP_TO = "DELETE FROM online_row WHERE view = :view AND key <= :last"

READ_TOKENS = """
SELECT coalesce(stored.token, 0)
FROM json_each(:buckets) AS asked
LEFT JOIN bucket_token AS stored
ON stored.view = :view AND stored.bucket = asked.value
"""

RAISE_TOKENS = """
INSERT INTO bucket_token (view, bucket, token)
SELECT :view, asked.value, 1 FROM json_each(:buckets) AS asked
WHERE true
ON CONFLICT (view, bucket) DO UPDATE SET token = token + 1
"""
