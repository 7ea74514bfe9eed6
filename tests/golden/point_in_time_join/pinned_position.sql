-- case: pinned_position
-- why: rows committed after the pinned position do not exist
WITH _pinned AS NOT MATERIALIZED (
  SELECT
    "carrier",
    "event_timestamp",
    "created_timestamp",
    "_sequence",
    "_position",
    GREATEST("event_timestamp", "created_timestamp") AS "_visible_from"
  FROM "p"."leg__v1"
  WHERE
    "_position" <= 3
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
), _leading AS (
  SELECT
    "_entity",
    "_visible_from",
    "event_timestamp",
    "_position"
  FROM (
    SELECT
      "_entity",
      "_visible_from",
      "event_timestamp",
      "_position",
      MAX("event_timestamp") OVER (
        PARTITION BY "_entity"
        ORDER BY "_visible_from", "event_timestamp", "created_timestamp", "_sequence"
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
      ) AS _greatest,
      LEAD("_visible_from") OVER (
        PARTITION BY "_entity"
        ORDER BY "_visible_from", "event_timestamp", "created_timestamp", "_sequence"
      ) AS _next
    FROM _visible
  ) AS _ordered
  WHERE
    "event_timestamp" = "_greatest"
    AND (
      "_next" IS NULL OR "_next" > "_visible_from"
    )
), _answers AS MATERIALIZED (
  SELECT
    "_asking"."_row",
    "_leading"."_position"
  FROM _asking
  ASOF JOIN _leading
    ON "_asking"."_entity" = "_leading"."_entity"
    AND "_asking"."_as_of" >= "_leading"."_visible_from"
)
SELECT
  "_answers"."_row",
  "_history"."event_timestamp",
  "_history"."delay"
FROM _answers
JOIN "p"."leg__v1" AS _history
  ON "_answers"."_position" = "_history"."_position";
