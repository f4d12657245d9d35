"""Faults of shard folders, each with what must be found of it."""
