"""The streaming half: batches from shards, tokens, the joint flow model and its training."""
