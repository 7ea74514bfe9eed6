-- case: without_created
-- why: a view without created_timestamp needs no window: its rows are visible in the order they happened
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
    "_position" <= 99
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
), _visible AS NOT MATERIALIZED (
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
    "_asking"."carrier",
    "_visible"."event_timestamp"
  FROM _asking
  ASOF JOIN _visible
    ON "_asking"."_entity" = "_visible"."_entity"
    AND "_asking"."_as_of" >= "_visible"."_visible_from"
), _greatest AS (
  SELECT
    "carrier",
    "event_timestamp",
    "_position"
  FROM (
    SELECT
      "carrier",
      "event_timestamp",
      "_position",
      ROW_NUMBER() OVER (
        PARTITION BY "carrier", "event_timestamp"
        ORDER BY "created_timestamp" DESC, "_sequence" DESC
      ) AS _place
    FROM _pinned
    SEMI JOIN _matched
      USING ("carrier", "event_timestamp")
  ) AS _ranked
  WHERE
    "_place" = 1
), _answers AS MATERIALIZED (
  SELECT
    "_matched"."_row",
    "_greatest"."_position"
  FROM _matched
  JOIN _greatest
    USING ("carrier", "event_timestamp")
)
SELECT
  "_answers"."_row",
  "_history"."event_timestamp",
  "_history"."delay"
FROM _answers
JOIN "p"."leg__v1" AS _history
  ON "_answers"."_position" = "_history"."_position";
