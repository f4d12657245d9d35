"""Synthetic corpora and builders that other people's tests may use."""
