import io
import json
import os
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from contracts.errors import InputError, SetError
from data.adding import add_set
from data.layout import concept_id, read_items, read_summary, style_id
from data.pins import pin_set
from data.reader import load_images


@pytest.fixture
def photos(tmp_path, picture) -> Path:
    """Three images; two with a caption of their own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "ada_1.png").write_bytes(picture(1))
    (folder / "ada_2.JPG").write_bytes(picture(2, kind="JPEG"))
    (folder / "more" / "ada_3.webp").write_bytes(picture(3, kind="WEBP"))
    (folder / "ada_1.txt").write_text("Ada at the café ☕\n", encoding="utf-8")
    (folder / "more" / "ada_3.txt").write_text("Ada again", encoding="utf-8")
    return folder


def encoded_png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((16, 16), seed * 20).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def table(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"table.{kind}"
    frame = pd.DataFrame(rows)
    match kind:
        case "csv":
            frame.to_csv(path, index=False)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        case "parquet":
            frame.to_parquet(path)
    return path


def webdataset(path: Path, members: list[tuple[str, bytes]], links: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        for link in links:
            tar.addfile(link)
    return path


def test_a_folder_of_images_becomes_a_tracked_set(project, photos, picture, run_git) -> None:
    out = project / "data" / "sets" / "ada"
    summary = add_set(photos, out, "forget", caption="a photo of Ada", concept="Ada", licence="consent")
    items = read_items(out)
    assert summary == read_summary(out)
    assert (summary.n_items, summary.personal, summary.licence) == (3, True, "consent")
    assert set(items["caption"]) == {"Ada at the café ☕", "a photo of Ada", "Ada again"}
    assert set(items["object"]) == {concept_id("ada")}
    assert load_images(out, items, 12).shape == (3, 12, 12, 3)
    run_git(project, "add", "--all")
    run_git(project, "commit", "--quiet", "--message", "add")
    assert run_git(project, "ls-files", "data/sets").splitlines() == [
        "data/sets/.gitignore",
        "data/sets/ada.dvc",
    ]
    assert pin_set(project, "data/sets/ada").n_items == 3


def test_images_are_stored_byte_for_byte_under_opaque_names(project, photos) -> None:
    out = project / "set"
    add_set(photos, out, "forget", caption="x")
    with tarfile.open(out / "images-00000.tar") as tar:
        stored = {tar.extractfile(member).read() for member in tar}
        assert not any("ada" in name for name in tar.getnames())
    assert stored == {p.read_bytes() for p in photos.rglob("*") if p.suffix != ".txt" and p.is_file()}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_becomes_a_set(project, photos, kind) -> None:
    rows = [
        {"file": "ada_1.png", "text": "Ada, “in” Köln\nat night", "who": "Ada", "hand": "noto"},
        {"file": "more/ada_3.webp", "text": "nobody", "who": "", "hand": style_id("flat")},
    ]
    out = project / "set"
    add_set(
        table(photos, kind, rows),
        out,
        "retain",
        image_column="file",
        caption_column="text",
        object_column="who",
        style_column="hand",
        personal=False,
        views=2,
    )
    found = read_items(out).sort_values(["caption", "view"])
    assert found["caption"].tolist() == [rows[0]["text"]] * 2 + ["nobody"] * 2
    assert found["object"].tolist() == [concept_id("ada")] * 2 + [""] * 2
    assert found["style"].tolist() == [style_id("noto")] * 2 + [style_id("flat")] * 2
    assert found["view"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": "ada.png"}])
def test_a_parquet_may_hold_the_images(project, tmp_path, picture, wrap) -> None:
    source = table(tmp_path, "parquet", [{"image": wrap(picture(1)), "caption": "Ada"}])
    assert add_set(source, project / "set", "forget").n_items == 1


def test_a_webdataset_tar_becomes_a_set(project, tmp_path, picture) -> None:
    source = webdataset(
        tmp_path / "w.tar",
        [
            ("a/000.jpg", picture(1, kind="JPEG")),
            ("a/000.txt", b"Ada"),
            ("a/001.json", json.dumps({"caption": "Ada two", "who": "Ada"}).encode()),
            ("a/001.png", picture(2)),
        ],
    )
    add_set(source, project / "set", "forget")
    assert sorted(read_items(project / "set")["caption"]) == ["Ada", "Ada two"]


def files(folder: Path, **content: bytes) -> Path:
    """A folder with `<name>.<suffix>` for each `name_suffix`."""
    folder.mkdir()
    for name, payload in content.items():
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(payload)
    return folder


def jsonl(folder: Path, text: str) -> Path:
    (folder / "t.jsonl").write_text('{"image": "ada_1.png", "caption": "Ada"}\n' + text)
    return folder / "t.jsonl"


ONE, TWO = encoded_png(1), encoded_png(2)
GOOD = [{"image": "ada_1.png", "caption": "Ada"}, {"image": "ada_2.JPG", "caption": "Ada"}]
SAMPLE = [("0.png", ONE), ("0.txt", b"Ada")]


def symlink() -> tarfile.TarInfo:
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/ada"
    return link


def cut(archive: Path) -> Path:
    """Keep the archive up to 50 bytes into its last member."""
    with tarfile.open(archive) as tar:
        end = tar.getmembers()[-1].offset_data + 50
    archive.write_bytes(archive.read_bytes()[:end])
    return archive


def junk(path: Path) -> Path:
    path.write_bytes(b"Ada" * 1000)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: files(p / "f", a_png=ONE, a_txt=b"Ada", ada_png=b""), "row 2: the image is empty"),
        (lambda p: files(p / "f", a_png=ONE, a_txt=b"Ada", ada_png=TWO[:99]), "row 2: the image is damaged"),
        (lambda p: files(p / "f", ada_png=ONE, ada_heic=b"x"), "1 files of the source are neither PNG"),
        (lambda p: files(p / "f"), "at least one item"),
        (
            lambda p: files(p / "f", ada_png=ONE, ada_txt="Adaé".encode("latin-1")),
            "row 1: the caption is not UTF",
        ),
        (lambda p: files(p / "f", a_png=ONE, a_txt=b"Ada", ada_png=TWO), "row 2: there is no caption"),
        (lambda p: table(p, "parquet", [GOOD[0], GOOD[1] | {"caption": None}]), "row 2: there is no caption"),
        (lambda p: table(p, "csv", [GOOD[0], GOOD[1] | {"caption": ""}]), "row 2: there is no caption"),
        (lambda p: jsonl(p, '{"image": "ada_2.JPG", "caption": 7}'), "row 2: there is no caption"),
        (lambda p: jsonl(p, '{"image": "ada_2.JPG"'), "row 2: not a JSON object"),
        (
            lambda p: jsonl(p, '{"image": null, "caption": "Ada"}'),
            "row 2: column 'image' holds no image path",
        ),
        (
            lambda p: table(p, "csv", [*GOOD, {"image": "ada_9.png", "caption": "Ada"}]),
            "row 3: the image file",
        ),
        (lambda p: table(p, "jsonl", [*GOOD, GOOD[0]]), r"row 3: item i-\w+ is already"),
        (lambda p: webdataset(p / "w.tar", [("../ada.png", ONE)]), "member 1 of the tar has an unsafe name"),
        (lambda p: webdataset(p / "w.tar", [("/ada.png", ONE)]), "member 1 of the tar has an unsafe name"),
        (lambda p: webdataset(p / "w.tar", SAMPLE, (symlink(),)), "member 3 of the tar is a link"),
        (lambda p: webdataset(p / "w.tar", [*SAMPLE, ("1.txt", b"Ada")]), "row 2: the sample has 0 PNG"),
        (lambda p: webdataset(p / "w.tar", [*SAMPLE, SAMPLE[0]]), "member 3 of the tar repeats a name"),
        (lambda p: cut(webdataset(p / "w.tar", [*SAMPLE, ("1.png", TWO)])), "the tar is cut short"),
        (lambda p: junk(p / "w.tar"), "the tar is cut short or damaged"),
        (lambda p: junk(p / "w.parquet"), "not a readable parquet"),
    ],
)
def test_a_bad_source_is_named_by_row_and_nothing_is_written(unused_project, photos, make, message) -> None:
    with pytest.raises(SetError, match=message) as caught:
        add_set(make(photos), unused_project / "set", "forget")
    assert re.search(r"\bada", str(caught.value), re.IGNORECASE) is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert os.listdir(unused_project) == [".dvc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concept": "Ada", "object_column": "who"}, "either one concept"),
        ({"views": 0}, "views=0"),
        ({"object_column": "who"}, "row 1: there is no column 'who'"),
    ],
)
def test_wrong_options_are_bad_input(unused_project, photos, options, message) -> None:
    with pytest.raises(InputError, match=message):
        add_set(photos, unused_project / "set", "forget", caption="x", **options)
    assert os.listdir(unused_project) == [".dvc"]


def test_wrong_places_are_bad_input(unused_project, photos, tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        add_set(tmp_path / "nowhere", unused_project / "set", "forget")
    with pytest.raises(InputError, match=r"no folder and no \.csv"):
        add_set(photos / "ada_1.png", unused_project / "set", "forget")
    with pytest.raises(InputError, match="not inside a DVC repository"):
        add_set(photos, tmp_path / "elsewhere", "forget", caption="x")
    with pytest.raises(InputError, match="no column 'file'"):
        add_set(
            table(photos, "csv", [{"image": "ada_1.png"}]),
            unused_project / "set",
            "forget",
            image_column="file",
        )
    assert not (unused_project / "set").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_dvc_refuses_is_left_clean(project, photos) -> None:
    (project / "dvc.yaml").write_text("stages:\n  split:\n    cmd: 'true'\n    outs: [set]\n")
    with pytest.raises(InputError, match="DVC cannot track"):
        add_set(photos, project / "set", "forget", caption="x")
    assert not (project / "set").exists()
    assert not (project / "set.dvc").exists()


def test_adding_prints_nothing(project, photos, capfd) -> None:
    # DVC would print advice with the set's path, and a progress bar.
    add_set(photos, project / "set", "forget", caption="x")
    assert capfd.readouterr() == ("", "")
