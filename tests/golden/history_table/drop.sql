-- case: drop
-- why: removing a history twice is removing it once
DROP TABLE IF EXISTS "p"."leg__v1";
