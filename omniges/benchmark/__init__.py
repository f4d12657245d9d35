"""Speed of loading and training on this machine."""
