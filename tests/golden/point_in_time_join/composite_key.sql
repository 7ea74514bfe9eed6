-- case: composite_key
-- why: keys are compared column by column, so texts that would glue together alike stay apart
WITH _asked AS (
  SELECT DISTINCT
    "origin",
    "dest"
  FROM "_spine"
), _visible AS (
  SELECT
    "origin",
    "dest",
    GREATEST("event_timestamp", "created_timestamp") AS "_visible_from",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM "p"."leg__v1"
  SEMI JOIN _asked
    USING ("origin", "dest")
  WHERE
    "_position" <= 99
), _leading AS (
  SELECT
    "origin",
    "dest",
    "_visible_from",
    "event_timestamp"
  FROM (
    SELECT
      "origin",
      "dest",
      "_visible_from",
      "event_timestamp",
      MAX("event_timestamp") OVER (PARTITION BY "origin", "dest" ORDER BY "_visible_from") AS _greatest
    FROM _visible
  ) AS _ranked
  WHERE
    "event_timestamp" = "_greatest"
), _matched AS MATERIALIZED (
  SELECT
    "_spine"."_row",
    "_spine"."origin",
    "_spine"."dest",
    "_spine"."_as_of",
    "_leading"."event_timestamp"
  FROM "_spine"
  ASOF JOIN _leading
    ON "_spine"."origin" = "_leading"."origin"
    AND "_spine"."dest" = "_leading"."dest"
    AND "_spine"."_as_of" >= "_leading"."_visible_from"
), _candidates AS (
  SELECT
    "origin",
    "dest",
    "event_timestamp",
    "_visible_from",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM _visible
  SEMI JOIN _matched
    USING ("origin", "dest", "event_timestamp")
), _versions AS (
  SELECT
    "origin",
    "dest",
    "event_timestamp",
    "_visible_from",
    "_position"
  FROM (
    SELECT
      "origin",
      "dest",
      "event_timestamp",
      "_visible_from",
      "_position",
      ROW_NUMBER() OVER (
        PARTITION BY "origin", "dest", "event_timestamp", "_visible_from"
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
    ON "_matched"."origin" = "_versions"."origin"
    AND "_matched"."dest" = "_versions"."dest"
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
