"""Benchmarks of data loading and of training steps on the local machine."""
