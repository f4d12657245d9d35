"""PNG pictures of samples, results, windows and training curves. Matplotlib is imported when a picture is drawn."""
