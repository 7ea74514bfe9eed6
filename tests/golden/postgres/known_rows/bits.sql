-- case: bits
-- why: rule 6: the same only if every value is equal bit for bit
SELECT
  "_incoming"."_row",
  BOOL_OR(
    (
      (
        "_incoming"."f" IS NULL AND "_history"."f" IS NULL
      )
      OR COALESCE((
        FLOAT8SEND("_incoming"."f") = FLOAT8SEND("_history"."f")
      ), FALSE)
    )
    AND (
      (
        "_incoming"."g" IS NULL AND "_history"."g" IS NULL
      )
      OR COALESCE((
        FLOAT4SEND("_incoming"."g") = FLOAT4SEND("_history"."g")
      ), FALSE)
    )
    AND (
      (
        "_incoming"."l" IS NULL AND "_history"."l" IS NULL
      )
      OR COALESCE((
        ARRAY_SEND("_incoming"."l") = ARRAY_SEND("_history"."l")
      ), FALSE)
    )
    AND (
      (
        "_incoming"."v" IS NULL AND "_history"."v" IS NULL
      )
      OR COALESCE((
        ARRAY_SEND("_incoming"."v") = ARRAY_SEND("_history"."v")
      ), FALSE)
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
    )
  ) AS _same
FROM "_incoming"
JOIN "p"."leg__v1" AS _history
  ON "_incoming"."carrier" = "_history"."carrier"
  AND "_incoming"."event_timestamp" = "_history"."event_timestamp"
  AND "_incoming"."created_timestamp" = "_history"."created_timestamp"
WHERE
  "_history"."event_timestamp" BETWEEN $1 AND $2
GROUP BY
  "_incoming"."_row";
