"""Score generated files by comparing them with recordings in shards (docs/reference/metrics.md)."""
