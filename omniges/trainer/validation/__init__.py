"""Validation during training: losses, samples and metrics of fixed windows of the val split; the best checkpoint."""
