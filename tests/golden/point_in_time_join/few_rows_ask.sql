-- case: few_rows_ask
-- why: of a long history the rows of the few entities asked for are kept, and read twice
WITH _pinned AS NOT MATERIALIZED (
  SELECT
    "carrier",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position",
    "event_timestamp" AS "_visible_from"
  FROM "p"."leg__v1"
  WHERE
    "_position" <= 10000
), _entities AS MATERIALIZED (
  SELECT
    "carrier",
    CAST(ROW_NUMBER() OVER () AS INT) AS "_entity"
  FROM (
    SELECT DISTINCT
      "carrier"
    FROM "_spine"
  ) AS _distinct
), _asking AS NOT MATERIALIZED (
  SELECT
    "_row",
    "carrier",
    "_entity",
    "_as_of"
  FROM "_spine"
  JOIN _entities
    USING ("carrier")
), _visible AS MATERIALIZED (
  SELECT
    "_entity",
    "_visible_from",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position"
  FROM _pinned
  JOIN _entities
    USING ("carrier")
), _matched AS MATERIALIZED (
  SELECT
    "_asking"."_row",
    "_asking"."_entity",
    "_visible"."event_timestamp"
  FROM _asking
  ASOF JOIN _visible
    ON "_asking"."_entity" = "_visible"."_entity"
    AND "_asking"."_as_of" >= "_visible"."_visible_from"
), _greatest AS (
  SELECT
    "_entity",
    "event_timestamp",
    "_position"
  FROM (
    SELECT
      "_entity",
      "event_timestamp",
      "_position",
      ROW_NUMBER() OVER (
        PARTITION BY "_entity", "event_timestamp"
        ORDER BY "created_timestamp" DESC, "_sequence" DESC
      ) AS _place
    FROM _visible
    SEMI JOIN _matched
      USING ("_entity", "event_timestamp")
  ) AS _ranked
  WHERE
    "_place" = 1
), _answers AS MATERIALIZED (
  SELECT
    "_matched"."_row",
    "_greatest"."_position"
  FROM _matched
  JOIN _greatest
    USING ("_entity", "event_timestamp")
)
SELECT
  "_answers"."_row",
  "_history"."event_timestamp",
  "_history"."delay"
FROM _answers
JOIN "p"."leg__v1" AS _history
  ON "_answers"."_position" = "_history"."_position";
