"""Any motion or result in; pages and files of other tools out. Files alone need no torch."""
