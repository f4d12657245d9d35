"""Pictures of samples, of results and of versions of a moment, as PNG; matplotlib is imported when one is drawn."""

from omniges.visualize.comparison import Version, draw_comparison
from omniges.visualize.result import Row, draw_result
from omniges.visualize.sample import draw_sample

__all__ = ["Row", "Version", "draw_comparison", "draw_result", "draw_sample"]
