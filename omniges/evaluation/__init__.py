"""Evaluation: generated files against the recordings in shards, by the metrics of docs/reference/metrics.md."""
