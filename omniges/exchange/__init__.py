"""Pages and videos of recordings and results, and their export to file formats of other tools.

Only `inspect_models`, which reads checkpoints and training runs, needs torch.
"""
