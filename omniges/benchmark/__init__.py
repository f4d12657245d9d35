"""How fast loading and training are on this machine."""
