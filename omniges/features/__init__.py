"""Conversions between recordings and the features of the model: pure functions on arrays, without files or torch."""
