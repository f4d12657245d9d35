"""Generate results with a trained model from a user's files or from shards."""
