"""Decoders and encoders of the recording files: bytes to arrays and back; `arrays.read_array` alone opens a file."""
