"""Windows of shards as batches: catalogue, order, reading, caches, the loader."""
