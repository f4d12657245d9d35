"""`omniges verify-shards`: proves that a shard folder is valid, or names the wrong bytes (docs/how-to/verify.md)."""
