"""Great Expectations Data Docs of a gate run, as pages that contact nobody.

Great Expectations' own pages load scripts, styles, fonts and a logo from eight foreign hosts: opening
one would tell third parties that, and when, somebody reads about an erasure.  So its rendered page is
passed through a filter that keeps the text, tables and its inline style, and drops scripts, outside
links and images; a content security policy makes a browser enforce the same.
"""

import html
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

    from gates.runner import Subject

_MEANING = {
    "candidate": "The edited model. Every expectation must be met.",
    "original": "The untouched model, under the erasure gates only. It must fail every one of them.",
    "control": "A concept the model never knew, under the erasure gates only. It must meet every one.",
    "earlier": "What earlier requests erased, at its worst. The edited model must meet what they promised.",
}
_DROPPED = frozenset({"script", "nav", "footer", "iframe", "object"})
_DROPPED_VOID = frozenset({"link", "img", "embed", "base", "input"})
_KEPT_ATTRIBUTES = frozenset({"id", "class", "style", "colspan", "rowspan", "charset", "name", "content"})
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Bootstrap came from a foreign host; these few rules replace what the tables need of it.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 72rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.d-none, .col-lg-2 { display: none; } .alert-secondary { background: #eee; padding: .5rem; }
h5, h6 { margin: 0; font-size: 1rem; }
.text-success, .text-danger { font-weight: bold; font-style: normal; }
.text-success::before { content: "met"; color: #176b2c; }
.text-danger::before { content: "not met"; color: #a31515; }
"""


def write_data_docs(
    validations: Mapping["Subject", "ExpectationSuiteValidationResult"], folder: Path
) -> Path:
    """Write one page per validated subject and an index; return the path of the index.

    The pages hold aggregate figures only, because nothing else was ever given to Great Expectations.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for subject, validation in validations.items():
        content = ValidationResultsPageRenderer().render(validation)
        page: str = DefaultJinjaPageView().render(content)  # type: ignore[no-untyped-call]
        (folder / f"{subject}.html").write_text(neutralise(page), encoding="utf-8")
        met = sum(bool(result.success) for result in validation.results)
        rows.append(
            f'<tr><td><a href="{subject}.html">{subject}</a></td>'
            f"<td>{met} of {len(validation.results)} expectations met</td><td>{_MEANING[subject]}</td></tr>"
        )
    index = folder / "index.html"
    body = f"<h1>Gates</h1><table>{''.join(rows)}</table>"
    index.write_text(f"<!DOCTYPE html><html><head>{_head()}</head><body>{body}</body></html>", "utf-8")
    return index


def neutralise(page: str) -> str:
    """The page without anything that a browser would fetch or run."""
    filtered = _Filter()
    filtered.feed(page)
    filtered.close()
    return "".join(filtered.out)


def _head() -> str:
    policy = html.escape(_POLICY)
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta charset="utf-8"><title>slugline gates</title><style>{_STYLE}</style>'
    )


class _Filter(HTMLParser):
    """Copies a page, leaving out what `neutralise` promises to leave out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.out: list[str] = ["<!DOCTYPE html>"]
        self._inside: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._inside.append(tag)
        if self._inside or tag in _DROPPED_VOID:
            return
        kept = "".join(
            f' {name}="{html.escape(value or "")}"'
            for name, value in attrs
            if name in _KEPT_ATTRIBUTES and not _fetches(value)
        )
        self._in_style = tag == "style"
        self.out.append(f"<{tag}{kept}>")
        if tag == "head":
            self.out.append(_head())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _DROPPED:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            if tag == self._inside[-1]:
                self._inside.pop()
            return
        if tag not in _DROPPED | _DROPPED_VOID:
            self._in_style = False
            self.out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._inside and not (self._in_style and _fetches(data)):
            self.out.append(data)

    def handle_entityref(self, name: str) -> None:
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.handle_data(f"&#{name};")


def _fetches(css_or_value: str | None) -> bool:
    return bool(re.search(r"url\s*\(|@import|https?:|//", css_or_value or "", re.IGNORECASE))
