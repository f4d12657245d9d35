"""`omniges verify-shards`: checks that a shard folder is valid, and reports wrong bytes (docs/how-to/verify.md)."""
