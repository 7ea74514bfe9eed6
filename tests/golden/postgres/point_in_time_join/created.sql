-- case: created
-- why: over all rows: the greatest order key so far, history and spine in one order of time
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
), _answers AS MATERIALIZED (
  SELECT
    "_row",
    "_rank"[4] AS "_position"
  FROM (
    SELECT
      "_row",
      MAX("_rank") OVER (
        PARTITION BY "_entity"
        ORDER BY "_at"
        RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
      ) AS "_rank"
    FROM (
      SELECT
        "_entity",
        "_visible_from" AS "_at",
        ARRAY[
          CAST(EXTRACT(EPOCH FROM "event_timestamp") * 1000000 AS BIGINT),
          CAST(EXTRACT(EPOCH FROM "created_timestamp") * 1000000 AS BIGINT),
          "_sequence",
          "_position"
        ] AS "_rank",
        CAST(NULL AS BIGINT) AS "_row"
      FROM _visible
      UNION ALL
      SELECT
        "_entity",
        "_as_of",
        CAST(NULL AS BIGINT[]),
        "_row"
      FROM _asking
    ) AS _merged
  ) AS _ranked
  WHERE
    NOT "_row" IS NULL AND NOT "_rank" IS NULL
)
SELECT
  "_answers"."_row",
  "_history"."event_timestamp",
  "_history"."delay"
FROM _answers
JOIN "p"."leg__v1" AS _history
  ON "_answers"."_position" = "_history"."_position";
