"""Read windows of shards as batches: catalogue, order of windows, readers, caches and loader."""
