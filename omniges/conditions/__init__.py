"""Condition streams: inputs of the model that are given for a window and never generated. Each stream has a module."""
