"""Which drawing of which vendor shows which concept.

Vendors name their files differently (CLDR slugs, code points, old short names).  A concept is a
Unicode emoji; its drawings are found by code point where the vendor ships a table of them, else by
its names with punctuation dropped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Concept:
    """One drawable thing: the CLDR name, its subcategory (family) and the code points that mean it."""

    name: str
    family: str
    keywords: tuple[str, ...]
    codepoints: tuple[str, ...]
    aliases: tuple[str, ...]


def concepts(
    emoji: Sequence[Mapping[str, Any]],
    slugs: Mapping[str, str],
    keywords: Mapping[str, Sequence[str]],
    categories: Sequence[str],
    leave_out: Sequence[str],
) -> list[Concept]:
    """The concepts of the wanted categories, ordered by name.

    Args:
        emoji: rows of emoji-datasource (`unified`, `category`, `subcategory`, `short_names`, `name`).
        slugs: code points in lower-case hex joined by dashes -> CLDR slug.
        keywords: emoji character -> short name and keywords (emojilib).
        categories: CLDR categories to keep.
        leave_out: CLDR subcategories to drop.
    """
    found = {}
    for row in emoji:
        if row["category"] not in categories or row["subcategory"] in leave_out:
            continue
        full = row["unified"].lower()
        codepoints = tuple(dict.fromkeys((full, full.replace("-fe0f", ""))))
        slug = next((slugs[c] for c in codepoints if c in slugs), None)
        if slug is None:
            continue
        name = slug.replace("-", " ")
        character = "".join(chr(int(c, 16)) for c in full.split("-"))
        words = keywords.get(character) or keywords.get(character.replace("\ufe0f", "")) or ()
        found[name] = Concept(
            name=name,
            family=row["subcategory"],
            keywords=_useful(words, name),
            codepoints=codepoints,
            aliases=(slug, *row["short_names"], row["name"]),
        )
    return sorted(found.values(), key=lambda c: c.name)


def _useful(words: Sequence[str], name: str) -> tuple[str, ...]:
    """Keywords in plain words, without the name itself and without emoticons."""
    plain = (w.replace("_", " ").lower() for w in words)
    return tuple(dict.fromkeys(w for w in plain if re.fullmatch(r"[a-z][a-z ]+", w) and w != name))


class IconSet:
    """The drawings of one iconify package (`icons.json`, optional `chars.json`)."""

    def __init__(self, icons: Mapping[str, Any], chars: Mapping[str, str]) -> None:
        self._icons = icons
        self._chars = chars
        self._by_letters = {_letters(k): k for k in icons["icons"]}
        for alias, target in icons.get("aliases", {}).items():
            if set(target) == {"parent"}:  # a flipped or rotated alias is another drawing
                self._by_letters.setdefault(_letters(alias), target["parent"])

    def svg(self, concept: Concept) -> str | None:
        """The SVG document that draws the concept, or None."""
        key = next((self._chars[c] for c in concept.codepoints if c in self._chars), None)
        if key is None:
            letters = (_letters(a) for a in concept.aliases)
            key = next((self._by_letters[x] for x in letters if x in self._by_letters), None)
        icon = self._icons["icons"].get(key) if key else None
        if icon is None:
            return None
        width, height = (icon.get(side, self._icons.get(side, 16)) for side in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
