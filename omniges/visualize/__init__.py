"""Pictures of samples, results and versions of a moment, as PNG; matplotlib is imported when one is drawn."""
