"""Validation during training: losses, samples and metrics on fixed windows of the val split; best checkpoint."""
