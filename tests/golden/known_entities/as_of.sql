-- case: as_of
-- why: one spine row per entity known at T
SELECT DISTINCT
  "carrier"
FROM "p"."leg__v1"
WHERE
  "_position" <= 6
  AND GREATEST("event_timestamp", "created_timestamp") <= MAKE_TIMESTAMPTZ(CAST(10 AS BIGINT));
