-- case: as_of
-- why: one spine row per entity known at T
SELECT DISTINCT
  "carrier"
FROM "p"."leg__v1"
WHERE
  "_position" <= 6
  AND GREATEST("event_timestamp", "created_timestamp") <= CAST('1970-01-01T00:00:00.000010+00:00' AS TIMESTAMPTZ);
