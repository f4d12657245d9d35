"""Files and stores: published whole, locked, fetched, cached, checked."""
