"""Decoders and encoders of recording files: bytes to arrays and back; few functions open files."""
