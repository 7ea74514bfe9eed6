-- case: add_column
-- why: a field that joins later is null in the rows before it
ALTER TABLE "p"."leg__v1"
ADD COLUMN "added" DOUBLE;
