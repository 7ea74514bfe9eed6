"""From definitions to query trees to SQL. Knows no engine's driver: engines differ by `dialects/` data alone."""
