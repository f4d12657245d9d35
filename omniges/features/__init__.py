"""Feature definitions: pure functions from arrays to arrays, each with its inverse; no files, no torch."""
