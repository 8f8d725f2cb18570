"""The figures of a run, as SVG for the page and as PNG for an MLflow run.

Each figure comes as two functions with the same arguments: `*_svg` returns an SVG that follows the
reader's light or dark scheme, `*_png` the same drawing on white.  Both are deterministic: equal input,
equal bytes.
"""

from report.plots.intervals import Pair, intervals_png, intervals_svg
from report.plots.profile import profile_png, profile_svg
from report.plots.search import search_png, search_svg

__all__ = [
    "Pair",
    "intervals_png",
    "intervals_svg",
    "profile_png",
    "profile_svg",
    "search_png",
    "search_svg",
]
