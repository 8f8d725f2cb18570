"""One look for all figures: colours safe for colour-blind readers, light and dark, equal bytes."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 7.2  # the text width of an A4 page with 14 mm margins: type prints at the size set here

# Okabe & Ito's blue, vermillion and green, darkened until text in them has 4.5:1 on white.
INK, MUTED, GRID, PAPER = "#1f2a37", "#5b6774", "#dfe4ea", "#fffffe"
BLUE, VERMILLION, GREEN, FAINT = "#0068a6", "#b84a00", "#00755a", "#a9b3be"
_DARK = {
    INK: "#e6eaef",
    MUTED: "#a3afbb",
    GRID: "#313b46",
    PAPER: "#161b21",
    BLUE: "#6cbcf0",
    VERMILLION: "#ff9a5c",
    GREEN: "#4fcfab",
    FAINT: "#66727f",
}
_FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@contextmanager
def drawing() -> Iterator[None]:
    """The rc settings under which a figure must be both built and saved."""
    import matplotlib as mpl

    with (
        warnings.catch_warnings(),
        mpl.rc_context(
            {
                "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine lays out alike
                "font.size": 7.5,
                "axes.titlesize": 8.5,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.titlepad": 8,
                "axes.edgecolor": GRID,
                "axes.labelcolor": MUTED,
                "axes.titlecolor": INK,
                "axes.facecolor": "none",
                "axes.axisbelow": True,
                "axes.grid": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "figure.facecolor": "none",
                "text.color": INK,
                "text.parse_math": False,  # names of labels and layers are data, a $ in one is no formula
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.major.size": 0,
                "ytick.major.size": 0,
                "xtick.minor.size": 0,
                "ytick.minor.size": 0,
                "svg.fonttype": "none",
                "svg.hashsalt": "slugline",
            }
        ),
    ):
        # In the SVG the reader's own fonts draw what DejaVu lacks; the warning would put letters of
        # label names into logs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height_in: float) -> "Figure":
    """An empty figure of the page's width, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def panel_title(axes: "Axes", title: str, note: str = "") -> None:
    """A bold title, with a quiet note on its right."""
    axes.set_title(title)
    if note:
        axes.set_title(note, loc="right", fontsize=7, fontweight="normal", color=MUTED)


def png(figure: "Figure", dpi: int = 160) -> bytes:
    """The figure on white as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: "Figure") -> bytes:
    """The figure as SVG whose colours follow `prefers-color-scheme`, without dates or outside names."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue().decode()
    text = text[text.index("<svg") :]  # the XML prolog and its DTD address
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", _FONTS)
    names = {colour: f"--c{i}" for i, colour in enumerate(_DARK)}
    for colour, name in names.items():
        text = text.replace(colour, f"var({name})")
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{names[colour]}:{value};" for colour, value in _DARK.items())
    scheme = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    end = text.index(">") + 1
    return (text[:end] + scheme + text[end:]).encode()
