"""Synthetic corpora and builders for tests. Tests of other packages may use them too."""
