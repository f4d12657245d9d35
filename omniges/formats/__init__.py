"""Decoders and encoders of recording files. Most functions convert between bytes and arrays, and open no files."""
