"""The online store: one packed row an entity, one key layout and one codec for all who write and read."""
