"""PNG pictures of samples, results and versions of a window. Matplotlib is imported when a picture is drawn."""
