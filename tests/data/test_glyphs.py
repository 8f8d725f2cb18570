"""Glyphs of a font are found by code point and stand upright, with their holes open."""

import io

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from data.alignment import Concept
from data.corpus import _png, _render
from data.glyphs import Glyphs

PIXELS = 40


def glyph(*contours: list[tuple[int, int]]):
    pen = TTGlyphPen(None)
    for first, *others in contours:
        pen.moveTo(first)
        for point in others:
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    """An L, a frame with a hole and a blank."""
    letter = glyph([(0, 0), (0, 1000), (200, 1000), (200, 200), (1000, 200), (1000, 0)])
    frame = glyph(
        [(0, 0), (0, 1000), (1000, 1000), (1000, 0)], [(300, 300), (700, 300), (700, 700), (300, 700)]
    )
    drawn = {".notdef": glyph(), "ell": letter, "frame": frame, "blank": glyph()}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(drawn))
    builder.setupCharacterMap({0x1F984: "ell", 0x1F5BC: "frame", 0x3000: "blank"})
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics(dict.fromkeys(drawn, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupPost()
    content = io.BytesIO()
    builder.save(content)
    return Glyphs(content.getvalue())


def concept(*codepoints: str) -> Concept:
    return Concept("thing", "things", (), codepoints, ("thing",))


def alpha(svg: str):
    from PIL import Image

    png = _png(Image.open(io.BytesIO(_render(svg, PIXELS))), PIXELS)
    return Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")


def test_a_glyph_stands_upright_and_fills_the_picture(glyphs: Glyphs) -> None:
    svg = glyphs.svg(concept("1f984"))
    assert svg is not None
    ink = alpha(svg)
    corners = [ink.getpixel((x, y)) > 128 for y in (2, PIXELS - 3) for x in (2, PIXELS - 3)]
    assert corners == [True, False, True, True]


def test_a_hole_stays_open(glyphs: Glyphs) -> None:
    svg = glyphs.svg(concept("1f5bc-fe0f", "1f5bc"))
    assert svg is not None
    assert alpha(svg).getpixel((PIXELS // 2, PIXELS // 2)) < 16
    assert alpha(svg).getpixel((3, PIXELS // 2)) > 128


@pytest.mark.parametrize("codepoints", [("1f355",), ("1f984-200d-1f525",), ("3000",)])
def test_what_the_font_does_not_draw_by_itself_has_no_picture(
    glyphs: Glyphs, codepoints: tuple[str, ...]
) -> None:
    # A sequence is not its first code point: "mending heart" is no heart.
    assert glyphs.svg(concept(*codepoints)) is None
