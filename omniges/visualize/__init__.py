"""Pictures of samples, results and versions of a window, as PNG; matplotlib is imported when one is drawn."""
