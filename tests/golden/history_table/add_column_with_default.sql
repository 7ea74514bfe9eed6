-- case: add_column_with_default
-- why: the default fills the rows before the field, and only those
ALTER TABLE "p"."leg__v1"
ADD COLUMN "added" BIGINT DEFAULT CAST(9007199254740993 AS BIGINT);
ALTER TABLE "p"."leg__v1"
ALTER COLUMN "added" DROP DEFAULT;
