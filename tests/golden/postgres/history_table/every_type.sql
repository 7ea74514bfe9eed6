-- case: every_type
-- why: text compares bytewise whatever the database's locale
CREATE TABLE IF NOT EXISTS "p"."leg__v1" (
  "number" INT NOT NULL,
  "tail" BYTEA NOT NULL,
  "day" DATE NOT NULL,
  "late" BOOLEAN NOT NULL,
  "event_timestamp" TIMESTAMPTZ NOT NULL,
  "created_timestamp" TIMESTAMPTZ NOT NULL,
  "_sequence" BIGINT NOT NULL,
  "_position" BIGINT NOT NULL,
  "_schema" INT NOT NULL,
  "a_bool" BOOLEAN,
  "an_int32" INT,
  "an_int64" BIGINT,
  "a_float32" REAL,
  "a_float64" DOUBLE PRECISION,
  "a_string" TEXT COLLATE "C",
  "some_bytes" BYTEA,
  "a_timestamp" TIMESTAMPTZ,
  "a_date" DATE,
  "a_decimal" DECIMAL(38, 4),
  "some_floats" DOUBLE PRECISION[],
  "some_strings" TEXT[] COLLATE "C",
  "a_vector" REAL[]
);
