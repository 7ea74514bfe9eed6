-- case: increment
-- why: rule 7 since (2, 24): rows past position 2 that are due, and rows before it that became due after 24
WITH _qualifying AS (
  SELECT
    "carrier",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM "p"."leg__v1"
  WHERE
    "_position" <= 4
    AND GREATEST("event_timestamp", "created_timestamp") <= CAST('1970-01-01T00:00:00.000030+00:00' AS TIMESTAMPTZ)
    AND (
      "_position" > 2
      OR GREATEST("event_timestamp", "created_timestamp") > CAST('1970-01-01T00:00:00.000024+00:00' AS TIMESTAMPTZ)
    )
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
      ROW_NUMBER() OVER (
        PARTITION BY "carrier"
        ORDER BY "created_timestamp" DESC NULLS LAST, "_sequence" DESC NULLS LAST
      ) AS _place
    FROM _qualifying
    WHERE
      ("carrier", "event_timestamp") IN (
        SELECT
          "carrier",
          "event_timestamp"
        FROM _newest
      )
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
WHERE
  "_position" IN (
    SELECT
      "_position"
    FROM _winners
  );
