-- case: increment
-- why: how many rows became due since (2, 24), and the watermark they bring
SELECT
  COUNT(*),
  MAX("event_timestamp"),
  MIN(GREATEST("event_timestamp", "created_timestamp"))
FROM "p"."leg__v1"
WHERE
  "_position" <= 4
  AND GREATEST("event_timestamp", "created_timestamp") <= CAST('1970-01-01T00:00:00.000030+00:00' AS TIMESTAMPTZ)
  AND (
    "_position" > 2
    OR GREATEST("event_timestamp", "created_timestamp") > CAST('1970-01-01T00:00:00.000024+00:00' AS TIMESTAMPTZ)
  );
