"""Files and stores: atomic publishing, locks, downloads, cache, checks."""
