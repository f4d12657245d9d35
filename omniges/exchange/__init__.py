"""Show recordings and results in pages and videos, and export them to file formats of other tools.

Only `inspect_models`, which reads checkpoints and training runs, needs torch.
"""
