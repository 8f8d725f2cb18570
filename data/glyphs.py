"""The drawings of a font: one glyph per code point, in one ink."""

import io

from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont

from data.alignment import Concept


class Glyphs:
    """The glyphs of a TrueType or WOFF font as SVG documents.

    Args:
        content: of the font file.
    """

    def __init__(self, content: bytes) -> None:
        font = TTFont(io.BytesIO(content))
        self._glyphs, self._names = font.getGlyphSet(), font.getBestCmap()

    def svg(self, concept: Concept) -> str | None:
        """The glyph of the concept's code point, fitted, or None; a sequence of several has no glyph here."""
        names = [self._names.get(int(c, 16)) for c in concept.codepoints if "-" not in c]
        name = next((name for name in names if name is not None), None)
        if name is None:
            return None
        path, bounds = SVGPathPen(self._glyphs), BoundsPen(self._glyphs)
        self._glyphs[name].draw(path)
        self._glyphs[name].draw(bounds)
        if bounds.bounds is None:
            return None  # a glyph without ink
        left, bottom, right, top = bounds.bounds
        # A font's y goes up, an SVG's down.
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {-top} {right - left} {top - bottom}">'
            f'<path transform="scale(1 -1)" d="{path.getCommands()}"/></svg>'
        )
