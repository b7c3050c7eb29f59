"""How the coverage benchmark makes data; see `benchmarks/coverage.py`."""
