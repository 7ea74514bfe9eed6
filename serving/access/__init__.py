"""serving.access: who calls, and what that caller may do. Knows neither gRPC nor HTTP; both ask here.

`door` tells who it is from what came with a request; `principal` says what it may do; `grants`, `tokens`, `issuer` and
`certificates` read what the operator keeps in files.
"""
