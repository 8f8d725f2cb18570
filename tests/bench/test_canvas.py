"""UnlearnCanvas for a user who has its checkpoints: figures, resuming, refusals; with tiny random ones."""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from bench import canvas as canvas_module
from bench.canvas import Canvas, figures, identity, judged, part, place
from bench.rows import Rows
from bench.unlearn_canvas import lines, main
from contracts.errors import InputError, ModelError
from contracts.values import Axis
from data.unlearn_canvas import CLASSIFIERS, PHOTOS, CanvasCell, canvas_cells, load_classifier
from tests.unlearning.diffusion_trained import untrained
from unlearning.drawing import draw
from unlearning.families.config import CONFIG
from unlearning.families.diffusion import DiffusionModel

OBJECTS = ("Dogs", "Human_Figures", "Trees")
STYLES = ("Cartoon", "Van_Gogh", "Winter", PHOTOS)
TARGET = STYLES.index("Van_Gogh")
NAMES: dict[Axis, Sequence[str]] = {"object": OBJECTS, "style": STYLES}
ALL: dict[Axis, int | None] = {"object": None, "style": None}
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def folder(painters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists, and random classifiers that tell these painters' pictures apart."""
    made = tmp_path_factory.mktemp("canvas")
    for name, listed in (("objects.txt", OBJECTS), ("styles.txt", STYLES)):
        (made / name).write_text("\n".join(listed) + "\n")
    cells = canvas_cells(OBJECTS[:2], STYLES, (5, 6))
    pictures = np.concatenate([drawn_by(painter, cells) for painter in painters.values()])
    for axis, listed in NAMES.items():
        with torch.random.fork_rng():
            torch.manual_seed(len(listed))
            net = timm.create_model(TINY, pretrained=False, num_classes=len(listed))
        path = made / f"{CLASSIFIERS[axis]}.safetensors"
        save_file(net.state_dict(), path)
        with torch.no_grad():
            net.head.bias -= load_classifier(made, axis, TINY)(pictures).mean(dim=0)
        save_file(net.state_dict(), path)
    return made


@pytest.fixture(scope="module")
def painters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two painters that know nothing, in place of an original and an edited model."""
    made = tmp_path_factory.mktemp("painters")
    for seed, state in enumerate(("before", "after")):
        untrained(seed).save(made / state)
    return {"before": made / "before", "after": made / "after"}


def drawn_by(painter: Path, cells: Sequence[CanvasCell]) -> NDArray[np.uint8]:
    prompts, seeds = [cell.prompt for cell in cells], [cell.seed for cell in cells]
    return draw(DiffusionModel.load(painter), prompts, seeds, steps=2, guidance=9.0)


def silent(what: str, done: int, total: int) -> None:
    """No bar."""


def command(monkeypatch: pytest.MonkeyPatch, *told: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.unlearn_canvas", *map(str, told)])
    main()


# --- the figures, by hand ------------------------------------------------------------------------------


def row(obj: int, style: int, said_object: int, said_style: int) -> dict[str, Any]:
    said = {"object": said_object, "style": said_style}
    return {"object": obj, "style": style, "prompt": f"{obj} in {style}", "said": said}


BEFORE = [row(o, s, o, s) for s in range(3) for o in range(3)]
AFTER = [
    # Asked for in the style that was forgotten: two of three no more called so, one object lost.
    row(0, 1, 0, 2), row(1, 1, 2, 0), row(2, 1, 2, 1),
    # Asked for in others: one of six called another style, another one another object, one both.
    row(0, 0, 0, 0), row(1, 0, 1, 2), row(2, 0, 0, 0), row(0, 2, 1, 1), row(1, 2, 1, 2), row(2, 2, 2, 2),
]  # fmt: skip


def test_figures_are_those_counted_by_hand() -> None:
    rates, drops = figures({"after": AFTER}, "style", 1)
    found = {name: (one.hits, one.n, one.clusters) for name, one in rates["after"].items()}
    assert found == {"UA": (2, 3, 3), "IRA": (4, 6, 6), "CRA": (6, 9, 9)}
    assert drops == {}
    # The same pictures, of a model that was to forget object 2.
    rates, _ = figures({"after": AFTER}, "object", 2)
    found = {name: (one.hits, one.n, one.clusters) for name, one in rates["after"].items()}
    assert found == {"UA": (1, 3, 3), "IRA": (4, 6, 6), "CRA": (5, 9, 9)}
    for one in rates["after"].values():
        assert one.lower95 < one.estimate < one.upper95


def test_drops_are_of_what_is_kept_and_paired_with_the_original() -> None:
    order = [(r["object"], r["style"]) for r in AFTER]
    before = sorted(BEFORE, key=lambda r: order.index((r["object"], r["style"])))
    rates, drops = figures({"before": before, "after": AFTER}, "style", 1)
    assert [one.estimate for one in rates["before"].values()] == [0, 1, 1]
    assert set(drops) == {"IRA", "CRA"}
    assert drops["IRA"].estimate == pytest.approx(2 / 6)
    assert drops["CRA"].estimate == pytest.approx(3 / 9)
    table = list(lines(rates, drops))
    assert table[2].startswith("| UA | 3 | 0.0% | 66.7% | ")
    assert "| 100.0% | 66.7% |" in table[3]
    assert "| 33.3 | " in table[3]


# --- pictures that say what they show, and who reads them ----------------------------------------------

Drawn = list[tuple[str, int]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Prompts and seeds in the order of drawing; a picture holds the places of its object and style."""
    asked: Drawn = []
    places = {cell.prompt: (cell.object, cell.style) for cell in canvas_cells(OBJECTS, STYLES)}

    def faithful(_: Any, prompts: Sequence[str], seeds: Sequence[int], **__: Any) -> NDArray[np.uint8]:
        asked.extend(zip(prompts, seeds, strict=True))
        pictures = np.zeros((len(prompts), 4, 4, 3), dtype=np.uint8)
        for picture, prompt in zip(pictures, prompts, strict=True):
            picture[..., :2] = places[prompt]
        return pictures

    monkeypatch.setattr(canvas_module, "draw", faithful)
    return asked


Reader = Callable[[NDArray[np.uint8], Axis], NDArray[np.int64]]


def reading(monkeypatch: pytest.MonkeyPatch, read: Reader) -> None:
    """Classifiers that name the class that `read` finds."""

    def load(_: Path, axis: Axis, *__: Any) -> Any:
        return lambda pictures: torch.eye(len(NAMES[axis]))[torch.from_numpy(read(pictures, axis))]

    monkeypatch.setattr(canvas_module, "load_classifier", load)


def sees(pictures: NDArray[np.uint8], axis: Axis) -> NDArray[np.int64]:
    return pictures[:, 0, 0, 0 if axis == "object" else 1].astype(np.int64)


def knows_nothing(pictures: NDArray[np.uint8], axis: Axis) -> NDArray[np.int64]:
    return np.zeros(len(pictures), dtype=np.int64)


def estimates(rows: list[dict[str, Any]], axis: Axis = "style", target: int = TARGET) -> dict[str, float]:
    return {name: one.estimate for name, one in figures({"after": rows}, axis, target)[0]["after"].items()}


def asked_of(folder: Path, **changes: Any) -> Canvas:
    cells = part(NAMES, "style", TARGET, ALL, (1, 2))
    return Canvas(folder, cells, **{"steps": 2, "architecture": TINY, "micro_batch": 4, **changes})


def test_a_model_that_draws_everything_has_forgotten_nothing(
    folder: Path, painters: dict[str, Path], drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, sees)
    canvas, rows = asked_of(folder), Rows(tmp_path / "rows.jsonl")
    found = judged(painters["after"], identity(painters["after"]), canvas, rows, silent)
    assert drawn == [(cell.prompt, cell.seed) for cell in canvas.cells]
    assert len(drawn) == 3 * 3 * 2  # of the photographs nothing is drawn
    assert estimates(found) == {"UA": 0, "IRA": 1, "CRA": 1}


def test_of_a_classifier_that_knows_nothing_ua_is_perfect_and_ira_says_so(
    folder: Path, painters: dict[str, Path], drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, knows_nothing)
    rows = Rows(tmp_path / "rows.jsonl")
    found = judged(painters["after"], identity(painters["after"]), asked_of(folder), rows, silent)
    assert estimates(found) == pytest.approx({"UA": 1, "IRA": 1 / 2, "CRA": 1 / 3})


def test_what_was_judged_is_not_drawn_again_and_an_interrupt_loses_no_batch_before_it(
    folder: Path, painters: dict[str, Path], drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "rows.jsonl", painters["after"]
    batches = count(1)

    def interrupted(pictures: NDArray[np.uint8], axis: Axis) -> NDArray[np.int64]:
        if axis == "style" and next(batches) == 3:
            raise KeyboardInterrupt
        return sees(pictures, axis)

    reading(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        judged(model, identity(model), asked_of(folder), Rows(path), silent)
    assert len(path.read_text().splitlines()) == 2 * 4
    drawn.clear()
    told: list[tuple[int, int]] = []
    found = judged(
        model,
        identity(model),
        asked_of(folder),
        Rows(path),
        lambda _, done, total: told.append((done, total)),
    )
    cells = asked_of(folder).cells
    assert drawn == [(cell.prompt, cell.seed) for cell in cells[8:]]
    assert told[0] == (8, 18)
    assert told[-1] == (18, 18)
    assert [(r["prompt"], r["seed"]) for r in found] == [(cell.prompt, cell.seed) for cell in cells]
    drawn.clear()
    assert judged(model, identity(model), asked_of(folder), Rows(path), silent) == found
    assert drawn == []


def test_rows_of_another_model_list_classifier_or_setting_are_not_used(
    folder: Path, painters: dict[str, Path], drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, sees)
    path = tmp_path / "rows.jsonl"

    def drawn_for(canvas: Canvas, model: Path = painters["after"]) -> int:
        drawn.clear()
        judged(model, identity(model), canvas, Rows(path), silent)
        return len(drawn)

    def copied(name: str, content: bytes) -> Path:
        made = tmp_path / f"other-{name}"
        made.mkdir()
        for file in folder.iterdir():
            (made / file.name).write_bytes(content if file.name == name else file.read_bytes())
        return made

    assert drawn_for(asked_of(folder)) == 18
    others = [
        asked_of(folder, steps=3),
        asked_of(folder, guidance=1.0),
        asked_of(copied("styles.txt", "\n".join(("Pastel", *STYLES[1:])).encode())),
        asked_of(copied("style50.safetensors", b"other weights")),
    ]
    for other in others:
        assert drawn_for(other) == 18
    assert drawn_for(asked_of(folder), painters["before"]) == 18
    assert drawn_for(asked_of(copied("notes.txt", b""), micro_batch=5)) == 0


# --- parts of the lists --------------------------------------------------------------------------------


def test_the_first_of_the_lists_and_the_target() -> None:
    cells = part(NAMES, "style", 2, {"object": 2, "style": 1}, (7, 7))
    assert [(cell.object, cell.style, cell.seed) for cell in cells] == [
        (0, 0, 7),
        (1, 0, 7),
        (0, 2, 7),
        (1, 2, 7),
    ]
    with pytest.raises(InputError, match="no style to keep"):
        part(NAMES, "style", 0, {"object": None, "style": 1}, (7,))
    assert part(NAMES, "object", 0, {"object": None, "style": 1}, (7,))


def test_a_target_is_found_as_lists_and_as_prompts_write_it() -> None:
    assert place(STYLES, "style", "Van Gogh") == place(STYLES, "style", "Van_Gogh") == TARGET
    for unknown in ("Monet", PHOTOS):
        with pytest.raises(InputError, match=f"holds no style '{unknown}'"):
            place(STYLES, "style", unknown)


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_draws_by_the_family_and_judges_by_the_folder_s_classifiers(
    folder: Path,
    painters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = [
        "--canvas", folder, "--model", painters["after"], "--before", painters["before"], "--out", tmp_path,
        "--target", "Van Gogh", "--axis", "style", "--objects", 2, "--seeds", 5, 6, "--steps", 2,
        "--architecture", TINY,
    ]  # fmt: skip
    command(monkeypatch, *told, "--json")
    found = json.loads(capsys.readouterr().out)
    cells = canvas_cells(OBJECTS[:2], STYLES, (5, 6))
    for state, painter in painters.items():
        assert found["models"][state] == identity(painter)
        pictures = drawn_by(painter, cells)
        said = {axis: load_classifier(folder, axis, TINY)(pictures).argmax(dim=1).tolist() for axis in NAMES}
        assert len(set(zip(*said.values(), strict=True))) > 1
        gone = [said["style"][i] != TARGET for i, cell in enumerate(cells) if cell.style == TARGET]
        kept = [said["style"][i] == cell.style for i, cell in enumerate(cells) if cell.style != TARGET]
        cross = [said["object"][i] == cell.object for i, cell in enumerate(cells)]
        counted = {name: (one["hits"], one["n"]) for name, one in found["rates"][state].items()}
        assert counted == {
            name: (sum(own), len(own)) for name, own in (("UA", gone), ("IRA", kept), ("CRA", cross))
        }

    # The original's pictures are judged once: another target draws none of its own.
    monkeypatch.setattr(canvas_module, "draw", None)
    command(monkeypatch, *told, "--target", "Human Figures", "--axis", "object")
    assert capsys.readouterr().out.startswith("| figure | pictures | before | after |")


def test_what_cannot_be_is_one_clear_sentence(
    folder: Path, painters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, kind: type[Exception], **changes: Any) -> None:
        told = {
            "canvas": folder,
            "model": painters["after"],
            "target": "Van Gogh",
            "axis": "style",
            **changes,
        }
        words = [word for name, value in told.items() for word in (f"--{name}", value)]
        with pytest.raises(kind, match=match):
            command(monkeypatch, *words, "--out", tmp_path)

    monkeypatch.setattr(canvas_module, "draw", None)  # all of it before anything is drawn
    other = tmp_path / "clip"
    untrained().save(other)
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps({**config, "family": "clip"}))
    refused("styles.txt holds no style 'Dogs'", InputError, target="Dogs")
    refused("objects.txt is missing", InputError, canvas=tmp_path / "none")
    refused("none is no model folder", ModelError, model=tmp_path / "none")
    refused("of family 'clip', expected 'diffusion'", ModelError, model=other)
    refused("of family 'clip', expected 'diffusion'", ModelError, before=other)
    refused("does not fit vit_tiny_patch16_384", ModelError, architecture="vit_tiny_patch16_384")
    if not torch.cuda.is_available():
        refused("no CUDA device", InputError, device="cuda")
