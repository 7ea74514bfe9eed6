"""Materialization: jobs that schedule, guard and resume what `featurestore.ingest` does. Knows nothing of serving."""
