"""`omniges verify-shards`: proves a shard folder valid, or says to the byte what is wrong (docs/how-to/verify.md)."""
