-- case: created
-- why: by lookups: the first visible row from as_of down is the answer
SELECT
  "_asking"."_row",
  "_found"."event_timestamp",
  "_found"."delay",
  COALESCE("_beyond"."_far", FALSE) AS "_far"
FROM (
  SELECT
    *
  FROM "_spine"
  ORDER BY
    "carrier",
    "_as_of"
) AS "_asking"
LEFT JOIN LATERAL (
  SELECT
    *
  FROM (
    SELECT
      "event_timestamp",
      "created_timestamp",
      "_sequence",
      "_position",
      "delay"
    FROM "p"."leg__v1" AS _history
    WHERE
      "_history"."carrier" = "_asking"."carrier"
      AND "_history"."event_timestamp" <= "_asking"."_as_of"
    ORDER BY
      "event_timestamp" DESC,
      "created_timestamp" DESC,
      "_sequence" DESC
    LIMIT 100
  ) AS _looked_at
  WHERE
    "_position" <= 99 AND "created_timestamp" <= "_asking"."_as_of"
  ORDER BY
    "event_timestamp" DESC,
    "created_timestamp" DESC,
    "_sequence" DESC
  LIMIT 1
) AS "_found"
  ON TRUE
LEFT JOIN LATERAL (
  SELECT
    TRUE AS "_far"
  FROM "p"."leg__v1" AS _history
  WHERE
    (
      "_history"."carrier" = "_asking"."carrier"
      AND "_history"."event_timestamp" <= "_asking"."_as_of"
    )
    AND "_found"."_position" IS NULL
  ORDER BY
    "event_timestamp" DESC,
    "created_timestamp" DESC,
    "_sequence" DESC
  LIMIT 1
  OFFSET 99
) AS "_beyond"
  ON TRUE
WHERE
  NOT "_found"."_position" IS NULL OR "_beyond"."_far";
