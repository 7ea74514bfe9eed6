-- case: every_type
-- why: keys, times and the store's own numbers are required, fields may be null; no unique index
CREATE TABLE IF NOT EXISTS "p"."leg__v1" (
  "number" INT NOT NULL,
  "tail" BLOB NOT NULL,
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
  "a_float64" DOUBLE,
  "a_string" TEXT,
  "some_bytes" BLOB,
  "a_timestamp" TIMESTAMPTZ,
  "a_date" DATE,
  "a_decimal" DECIMAL(38, 4),
  "some_floats" DOUBLE[],
  "some_strings" TEXT[],
  "a_vector" REAL[2]
);
