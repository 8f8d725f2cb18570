"""The second reference model: what its packages must be, where weights arrive, what is trained on."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from contracts.errors import InputError
from contracts.values import Role
from data import pretrained_towers, projection, real_towers
from data.layout import concept_id, style_id
from data.pretrained_towers import IMAGE_WEIGHTS, TEXT_CONFIG, TEXT_WEIGHTS
from data.projection import Drawings, Options
from data.writing import NewItem, write_set
from tests.data.conftest import encoded
from tests.pretrained_towers import random_model
from unlearning.families.clip import ClipModel
from unlearning.families.config import WEIGHTS

needs_packages = pytest.mark.skipif(
    any(find_spec(file.package) is None for file in (IMAGE_WEIGHTS, TEXT_WEIGHTS)),
    reason="the extra real-towers is not installed",
)


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(TEXT_CONFIG, package="no_such_package")
    monkeypatch.setattr(pretrained_towers, "TEXT_CONFIG", absent)
    with pytest.raises(InputError, match=r"no_such_package/.* pip install -r requirements-real-towers\.txt"):
        pretrained_towers.assemble()


def test_what_is_there_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches a key that leaves out what was trained on, and a record beside a model that is being replaced.
    built = []

    class Corpus:
        sha256 = "first"

        def __init__(self, data: Path, without: frozenset[str]) -> None:
            pass

    def stop() -> None:
        built.append(1)
        raise InputError("stopped")

    monkeypatch.setattr(real_towers, "_Corpus", Corpus)
    monkeypatch.setattr(real_towers, "assemble", stop)

    def build() -> dict[str, object]:
        return real_towers.build(tmp_path, tmp_path, 1, lambda *told: None)

    with pytest.raises(InputError, match="stopped"):
        build()
    key = real_towers.key_of(Corpus.sha256)
    (tmp_path / "built.json").write_text(json.dumps({"key": key, "metrics": {"search": 1}}))
    assert (build(), built) == ({"search": 1}, [1])
    Corpus.sha256 = "other drawings"
    with pytest.raises(InputError, match="stopped"):
        build()
    assert not (tmp_path / "built.json").exists()


def test_the_first_seed_keeps_the_key_it_had() -> None:
    """Models that were built before there were other seeds stay valid."""
    known = "cc81de79068e8be40214e8d2534b73baffcd3fc867c0becee86452caf83e49bf"
    assert real_towers.key_of("corpus") == real_towers.key_of("corpus", 7) == known
    assert real_towers.key_of("corpus", 8) != known


THINGS, HANDS, UNSEEN = ("ball", "cup", "key", "leaf", "star"), ("ink", "oil"), "wax"
TEMPLATES = {"object": ["a picture of {}"], "style": ["{} style"]}


def drawn(first_seed: int, hands: tuple[str, ...]) -> list[NewItem]:
    """Every thing once by every hand."""
    pairs = [(thing, hand) for thing in THINGS for hand in hands]
    return [
        NewItem(encoded(first_seed + i), f"a picture of {thing}", concept_id(thing), style_id(hand))
        for i, (thing, hand) in enumerate(pairs)
    ]


@dataclass
class Trained:
    """What the projections were trained on, each time."""

    drawings: list[Drawings]
    names: list[Mapping[str, Sequence[str]]]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Here training runs in a few steps, on tiny sets, with random towers instead of the packages'."""
    sets = {"pool": HANDS[:1], "retain": HANDS[1:], "search": (UNSEEN,), "holdout": (UNSEEN,)}
    for i, (name, hands) in enumerate(sets.items()):
        role: Role = "retain" if name == "pool" else name  # type: ignore[assignment]
        write_set(tmp_path / "data/sets" / name, role, drawn(10 * i, hands), personal=False, licence="CC0")
    rows = [(concept_id(name), "object", name, True) for name in THINGS]
    rows += [(style_id(name), "style", name, name != UNSEEN) for name in (*HANDS, UNSEEN)]
    (tmp_path / "data/labels").mkdir()
    labels = pd.DataFrame(rows, columns=["id", "axis", "name", "seen"])
    labels.to_parquet(tmp_path / "data/labels/labels.parquet")
    (tmp_path / "data/labels/templates.json").write_text(json.dumps(TEMPLATES))

    told, train = Trained([], []), projection.train

    def few_steps(
        model: ClipModel, drawings: Drawings, names: Mapping[str, Sequence[str]], *others: Any
    ) -> None:
        told.drawings.append(drawings)
        told.names.append(names)
        train(model, drawings, names, *others, Options(steps=2, batch=4))

    words = (*THINGS, *HANDS, "a picture of", "style")
    monkeypatch.setattr(real_towers, "assemble", lambda: random_model(words))
    monkeypatch.setattr(projection, "train", few_steps)
    monkeypatch.chdir(tmp_path)
    return told


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """`python -m data.real_towers` into the folder out; the key of what is there then."""
    monkeypatch.setattr(sys, "argv", ["real_towers", "--out", "out", *options])
    real_towers.main()
    return str(json.loads(Path("out/built.json").read_text())["key"])


@pytest.mark.parametrize("without", [(), ("cup",), ("ball", "star")])
def test_what_is_left_out_is_in_no_drawing_name_or_figure(
    without: tuple[str, ...],
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Catches classes that are counted among other names than those trained with.
    Path("ids.txt").write_text("\n".join(concept_id(name) for name in without) + "\n")
    run(monkeypatch, "--without", "ids.txt")
    kept, (drawings,), (names,) = set(THINGS) - set(without), trained.drawings, trained.names
    assert sorted(names["object"]) == sorted(kept)
    assert sorted(names["style"]) == sorted(HANDS)
    assert sorted(drawings.captions) == sorted(2 * [f"a picture of {name}" for name in kept])
    said = [f"a picture of {names['object'][i]}" for i in drawings.objects.tolist()]
    assert said == list(drawings.captions)
    assert {len(view) for view in drawings.views} == {len(said)}
    figures = json.loads(capsys.readouterr().out)
    assert {name: own["n"] for name, own in figures.items()} == {
        f"search_{UNSEEN}": len(kept),
        f"holdout_{UNSEEN}": len(kept),
    }
    assert ClipModel.load(Path("out/model")).image_size == 32


def test_another_seed_or_another_thing_left_out_is_another_model(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ids.txt").write_text(concept_id("cup"))
    weights = Path("out/model") / WEIGHTS
    found = {}
    for options in ((), ("--seed", "8"), ("--without", "ids.txt"), ("--without", "ids.txt", "--seed", "8")):
        key = run(monkeypatch, *options)
        found[key] = weights.read_bytes()
    assert (len(found), len(set(found.values())), len(trained.names)) == (4, 4, 4)
    run(monkeypatch, "--without", "ids.txt", "--seed", "8")
    assert len(trained.names) == 4
    assert run(monkeypatch, "--seed", "7") == next(iter(found))
    assert found[next(iter(found))] == weights.read_bytes()


def test_what_cannot_be_left_out_is_told(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ids.txt").write_text("c-00000000")
    with pytest.raises(InputError, match="nothing was drawn of c-00000000"):
        run(monkeypatch, "--without", "ids.txt")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--without", "no-such.txt")
    assert "--without no-such.txt: No such file" in capsys.readouterr().err
    assert trained.names == []


@needs_packages
def test_towers_compute_what_their_publishers_say() -> None:
    """Against timm's and transformers' own models, loaded their own way."""
    import timm
    from transformers import AutoModel

    torch.set_num_threads(1)
    model = pretrained_towers.assemble()
    published = torch.load(
        str(resources.files(IMAGE_WEIGHTS.package) / IMAGE_WEIGHTS.path), weights_only=True
    )
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    trunk.load_state_dict(dict(zip(trunk.state_dict(), published.values(), strict=True)))
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = trunk.forward_head(trunk.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(model.net.visual.trunk(pixels), wanted)

    folder = str(resources.files(TEXT_WEIGHTS.package) / TEXT_WEIGHTS.path).rpartition("/")[0]
    bert = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    ids = model.tokenize(["a hot beverage", "an emoji of a red apple, clay style"])
    with torch.no_grad():
        states = bert(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        mine = model.net.text.transformer(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(mine, states)
    assert "pooler" not in " ".join(model.parameters)
