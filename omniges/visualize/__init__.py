"""Pictures of samples, of results and of versions of a moment, as PNG; matplotlib is imported when one is drawn."""
