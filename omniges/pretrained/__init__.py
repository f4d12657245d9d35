"""Pretrained weights of other models, and the initialization of a run from them."""
