"""Validation while training: fixed windows of the val split, their losses, samples and metrics; the best checkpoint."""
