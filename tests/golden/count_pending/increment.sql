-- case: increment
-- why: how many rows became due since (2, 24), the watermark they bring, and since when the first is due
SELECT
  COUNT(*),
  MAX("event_timestamp"),
  MIN(GREATEST("event_timestamp", "created_timestamp"))
FROM "p"."leg__v1"
WHERE
  "_position" <= 4
  AND GREATEST("event_timestamp", "created_timestamp") <= MAKE_TIMESTAMPTZ(CAST(30 AS BIGINT))
  AND (
    "_position" > 2
    OR GREATEST("event_timestamp", "created_timestamp") > MAKE_TIMESTAMPTZ(CAST(24 AS BIGINT))
  );
