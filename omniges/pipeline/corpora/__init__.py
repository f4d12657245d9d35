"""Data sets that `preprocess` knows, one file each."""
