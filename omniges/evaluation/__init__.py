"""Evaluation: scores of generated files against recordings in shards, by the metrics of docs/reference/metrics.md."""
