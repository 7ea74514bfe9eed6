-- case: bits
-- why: rule 6: same keys and times are known, and the same only if every value is equal bit for bit
WITH _met AS MATERIALIZED (
  SELECT
    "_incoming"."_row",
    "_history"."_position"
  FROM "_incoming"
  JOIN "p"."leg__v1" AS _history
    ON "_incoming"."carrier" = "_history"."carrier"
    AND "_incoming"."event_timestamp" = "_history"."event_timestamp"
    AND "_incoming"."created_timestamp" = "_history"."created_timestamp"
  WHERE
    "_history"."event_timestamp" BETWEEN $1 AND $2
)
SELECT
  "_met"."_row",
  BOOL_OR(
    CAST((
      (
        "_incoming"."f" IS NULL AND "_history"."f" IS NULL
      )
      OR COALESCE(
        (
          "_incoming"."f" = "_history"."f"
          AND SIGNBIT("_incoming"."f") = SIGNBIT("_history"."f")
        ),
        FALSE
      )
    )
    AND (
      (
        "_incoming"."g" IS NULL AND "_history"."g" IS NULL
      )
      OR COALESCE(
        (
          "_incoming"."g" = "_history"."g"
          AND SIGNBIT("_incoming"."g") = SIGNBIT("_history"."g")
        ),
        FALSE
      )
    )
    AND (
      (
        "_incoming"."l" IS NULL AND "_history"."l" IS NULL
      )
      OR COALESCE(
        (
          "_incoming"."l" = "_history"."l"
          AND LIST_TRANSFORM(CAST("_incoming"."l" AS DOUBLE[]), LAMBDA x : SIGNBIT(x)) = LIST_TRANSFORM(CAST("_history"."l" AS DOUBLE[]), LAMBDA x : SIGNBIT(x))
        ),
        FALSE
      )
    )
    AND (
      (
        "_incoming"."v" IS NULL AND "_history"."v" IS NULL
      )
      OR COALESCE(
        (
          "_incoming"."v" = "_history"."v"
          AND LIST_TRANSFORM(CAST("_incoming"."v" AS REAL[]), LAMBDA x : SIGNBIT(x)) = LIST_TRANSFORM(CAST("_history"."v" AS REAL[]), LAMBDA x : SIGNBIT(x))
        ),
        FALSE
      )
    )
    AND (
      (
        "_incoming"."t" IS NULL AND "_history"."t" IS NULL
      )
      OR COALESCE((
        "_incoming"."t" = "_history"."t"
      ), FALSE)
    )
    AND (
      (
        "_incoming"."b" IS NULL AND "_history"."b" IS NULL
      )
      OR COALESCE((
        "_incoming"."b" = "_history"."b"
      ), FALSE)
    )
    AND (
      (
        "_incoming"."k" IS NULL AND "_history"."k" IS NULL
      )
      OR COALESCE((
        "_incoming"."k" = "_history"."k"
      ), FALSE)
    )
    AND (
      (
        "_incoming"."d" IS NULL AND "_history"."d" IS NULL
      )
      OR COALESCE((
        "_incoming"."d" = "_history"."d"
      ), FALSE)
    ) AS BOOLEAN)
  ) AS _same
FROM _met
JOIN "_incoming"
  ON "_met"."_row" = "_incoming"."_row"
JOIN "p"."leg__v1" AS _history
  ON "_met"."_position" = "_history"."_position"
GROUP BY
  "_met"."_row";
