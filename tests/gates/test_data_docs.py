"""Data Docs show the figures and fetch nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from contracts.values import Measurements
from gates.data_docs import neutralise, write_data_docs
from gates.runner import run_suite
from gates.suite import DEFAULT_SUITE, load_suite

_LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class _Loads(HTMLParser):
    """Collects what a browser would fetch or run on opening the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "img", "base"):
            self.found.append(tag)
        for name, value in attrs:
            if name in _LOADING or name.startswith("on") or re.search(r"url\(|//", value or ""):
                self.found.append(f"{tag} {name}={value}")


def _loads(page: str) -> list[str]:
    parser = _Loads()
    parser.feed(page)
    return parser.found


@pytest.fixture(scope="module")
def docs(measurements: Measurements, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_docs(
        run_suite(load_suite(DEFAULT_SUITE), measurements).validations,
        tmp_path_factory.mktemp("docs") / "pages",
    )


def test_index_leads_to_a_page_per_subject(docs: Path) -> None:
    links = re.findall(r'href="([^"]+)"', docs.read_text())
    assert links == ["candidate.html", "original.html", "control.html"]
    assert all((docs.parent / link).is_file() for link in links)


@pytest.mark.parametrize("page", ["candidate.html", "original.html", "control.html"])
def test_opening_a_page_contacts_nobody(docs: Path, page: str) -> None:
    text = (docs.parent / page).read_text()
    assert _loads(text) == []
    assert not re.search(r"https?://", text)
    assert "Content-Security-Policy" in text


def test_figures_and_bounds_are_rendered(docs: Path) -> None:
    """Catches: numpy scalars in the table, which Great Expectations renders as `--`."""
    text = re.sub(r"<[^>]*>", "", (docs.parent / "candidate.html").read_text())
    assert "forget.fa1.after.upper95" in text
    assert "maximum value must be less than or equal to 0.1" in text
    assert "0.0487" in text  # the upper bound of 0 hits of 60
    assert "--" not in text


def test_original_page_shows_unmet_gates(docs: Path) -> None:
    unmet = 'class="fas fa-times text-danger"'
    assert unmet in (docs.parent / "original.html").read_text()
    assert unmet not in (docs.parent / "control.html").read_text()


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://x.example/a.js"></script>',
        "<script>fetch('//x.example')</script>",
        '<link rel="stylesheet" href="//x.example/a.css"/>',
        '<img src="https://x.example/a.png">',
        '<p style="background: url(https://x.example/a.png)">kept</p>',
        '<p onclick="go()">kept</p>',
        '<iframe src="https://x.example"></iframe>',
        "<style>@import 'https://x.example/a.css';</style>",
        '<nav><nav><a href="https://x.example">x</a></nav></nav>',
    ],
)
def test_filter_drops_what_would_load(markup: str) -> None:
    page = neutralise(f"<html><head></head><body><i>a</i>{markup}<i>&lt;b&gt; &#65;</i></body></html>")
    assert _loads(page) == []
    assert "x.example" not in page
    assert "<i>a</i>" in page
    assert "<i>&lt;b&gt; &#65;</i>" in page
    assert ("kept" in page) == ("kept" in markup)
