"""Decoders and encoders of the recording files: pure bytes to arrays and back, no file access."""
