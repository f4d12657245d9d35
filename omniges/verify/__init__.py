"""`omniges verify-shards`: check that a shard folder is valid, and report damage (docs/how-to/verify.md)."""
