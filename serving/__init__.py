"""serving: answers feature lookups from the online store, in process and over gRPC.

`lookup` holds the rules and knows neither gRPC nor the registry; `catalog` reads the registry; `wire`, `servicer` and
`server` speak gRPC; `client` is what other programs use.
"""
