"""Evaluation: scores that compare generated files with recordings in shards (docs/reference/metrics.md)."""
