"""Pictures of samples, of results and of versions of a moment, as PNG; matplotlib is imported when one is drawn."""

from omniges.pictures.comparison import Version, draw_comparison
from omniges.pictures.result import Row, draw_result
from omniges.pictures.sample import draw_sample

__all__ = ["Row", "Version", "draw_comparison", "draw_result", "draw_sample"]
