-- case: without_created
-- why: the horizon is compared with the event time alone
WITH _qualifying AS NOT MATERIALIZED (
  SELECT
    "carrier",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM "p"."leg__v1"
  WHERE
    "_position" <= 99 AND "event_timestamp" <= MAKE_TIMESTAMPTZ(CAST(19 AS BIGINT))
), _newest AS (
  SELECT
    "carrier",
    MAX("event_timestamp") AS "event_timestamp"
  FROM _qualifying
  GROUP BY
    "carrier"
), _winners AS (
  SELECT
    "_position"
  FROM (
    SELECT
      "_position",
      ROW_NUMBER() OVER (PARTITION BY "carrier" ORDER BY "created_timestamp" DESC, "_sequence" DESC) AS _place
    FROM _qualifying
    SEMI JOIN _newest
      USING ("carrier", "event_timestamp")
  ) AS _tied
  WHERE
    "_place" = 1
)
SELECT
  "carrier",
  "event_timestamp",
  "created_timestamp",
  "_sequence",
  "_schema",
  "delay"
FROM "p"."leg__v1"
SEMI JOIN _winners
  USING ("_position");
