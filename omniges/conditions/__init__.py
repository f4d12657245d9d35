"""Condition streams: inputs of the model that are known for a window and never generated. One file for each stream."""
