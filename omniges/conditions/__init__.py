"""Condition streams: what is known of a window and given to the model, and never generated. One file a stream."""
