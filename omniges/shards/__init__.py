"""The shard contract: schema, tar members, writer, manifest, statistics, tokenizer, reader.

docs/reference/shards.md describes it.
"""
