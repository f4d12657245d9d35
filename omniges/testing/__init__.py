"""Synthetic corpora and test builders, which tests of other packages may use too."""
