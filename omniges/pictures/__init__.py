"""Pictures of samples and of results, as PNG; matplotlib is imported when one is drawn."""

from omniges.pictures.result import Row, draw_result
from omniges.pictures.sample import draw_sample

__all__ = ["Row", "draw_result", "draw_sample"]
