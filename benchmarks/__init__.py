"""What `make bench` measures: one module a benchmark. docs/benchmarks.md says what each of them stands for."""
