"""Metrics of generated gesture, text and speech: pure functions of arrays, defined in docs/reference/metrics.md."""
