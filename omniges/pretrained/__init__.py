"""Weights of others, and runs that begin with them."""
