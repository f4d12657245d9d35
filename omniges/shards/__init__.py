"""The shard contract: names, tar members, writer, manifest, statistics, tokenizer, reader.

docs/reference/shards.md describes the contract.
"""
