-- case: created
-- why: rules 1-4: visible from the later of both times; the greatest (event, created, sequence) answers
WITH _asked AS (
  SELECT DISTINCT
    "carrier"
  FROM "_spine"
), _visible AS (
  SELECT
    "carrier",
    GREATEST("event_timestamp", "created_timestamp") AS "_visible_from",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM "p"."leg__v1"
  SEMI JOIN _asked
    USING ("carrier")
  WHERE
    "_position" <= 99
), _leading AS (
  SELECT
    "carrier",
    "_visible_from",
    "event_timestamp"
  FROM (
    SELECT
      "carrier",
      "_visible_from",
      "event_timestamp",
      MAX("event_timestamp") OVER (PARTITION BY "carrier" ORDER BY "_visible_from") AS _greatest
    FROM _visible
  ) AS _ranked
  WHERE
    "event_timestamp" = "_greatest"
), _matched AS MATERIALIZED (
  SELECT
    "_spine"."_row",
    "_spine"."carrier",
    "_spine"."_as_of",
    "_leading"."event_timestamp"
  FROM "_spine"
  ASOF JOIN _leading
    ON "_spine"."carrier" = "_leading"."carrier"
    AND "_spine"."_as_of" >= "_leading"."_visible_from"
), _candidates AS (
  SELECT
    "carrier",
    "event_timestamp",
    "_visible_from",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM _visible
  SEMI JOIN _matched
    USING ("carrier", "event_timestamp")
), _versions AS (
  SELECT
    "carrier",
    "event_timestamp",
    "_visible_from",
    "_position"
  FROM (
    SELECT
      "carrier",
      "event_timestamp",
      "_visible_from",
      "_position",
      ROW_NUMBER() OVER (
        PARTITION BY "carrier", "event_timestamp", "_visible_from"
        ORDER BY "created_timestamp" DESC, "_sequence" DESC
      ) AS _place
    FROM _candidates
  ) AS _numbered
  WHERE
    "_place" = 1
), _answers AS MATERIALIZED (
  SELECT
    "_matched"."_row",
    "_versions"."_position"
  FROM _matched
  ASOF JOIN _versions
    ON "_matched"."carrier" = "_versions"."carrier"
    AND "_matched"."event_timestamp" = "_versions"."event_timestamp"
    AND "_matched"."_as_of" >= "_versions"."_visible_from"
)
SELECT
  "_answers"."_row",
  "_history"."event_timestamp",
  "_history"."delay"
FROM _answers
JOIN "p"."leg__v1" AS _history
  ON "_answers"."_position" = "_history"."_position";
