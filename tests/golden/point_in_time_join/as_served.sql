-- case: as_served
-- why: a row counts from the first publish that covers its position and its visibility
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
    "_position" <= 99
), _served AS NOT MATERIALIZED (
  SELECT
    "_pinned"."carrier",
    "_pinned"."event_timestamp",
    "_pinned"."created_timestamp",
    "_pinned"."_sequence",
    "_pinned"."_position",
    GREATEST("_by_position"."_publish", "_by_horizon"."_publish") AS "_visible_from"
  FROM _pinned
  ASOF JOIN "_published_positions" AS _by_position
    ON "_pinned"."_position" <= "_by_position"."_up_to"
  ASOF JOIN "_published_horizons" AS _by_horizon
    ON "_pinned"."_visible_from" <= "_by_horizon"."_up_to"
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
  FROM _served
  JOIN _entities
    USING ("carrier")
), _ranked AS NOT MATERIALIZED (
  SELECT
    "_entity",
    "_visible_from",
    "_position",
    ROW_NUMBER() OVER (
      PARTITION BY "_entity"
      ORDER BY "event_timestamp", "created_timestamp", "_sequence"
    ) AS "_rank"
  FROM _visible
), _leading AS (
  SELECT
    "_entity",
    "_visible_from",
    "_rank",
    "_position"
  FROM (
    SELECT
      "_entity",
      "_visible_from",
      "_rank",
      "_position",
      MAX("_rank") OVER (
        PARTITION BY "_entity"
        ORDER BY "_visible_from", "_rank"
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
      ) AS _greatest,
      LEAD("_visible_from") OVER (PARTITION BY "_entity" ORDER BY "_visible_from", "_rank") AS _next
    FROM _ranked
  ) AS _ordered
  WHERE
    "_rank" = "_greatest" AND (
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
