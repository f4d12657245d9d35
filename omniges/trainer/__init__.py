"""Training of the joint flow model: batches from shards, the training step, checkpoints, validation and logs."""
