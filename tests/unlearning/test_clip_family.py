"""The CLIP adapter: model folders, tokenizer, preprocessing, features and candidate layers."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.transforms import v2

from contracts.canonical import file_sha256
from contracts.errors import InputError, ModelError
from tests.unlearning.conftest import assert_open_clips_without_padding
from unlearning.families.clip import EXCLUDED, ClipModel
from unlearning.families.clip_config import Preprocess

Make = Callable[..., ClipModel]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "config.json") -> None:
    """Apply `change` to the content of config.json or weights.safetensors."""
    if file == "config.json":
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))
    else:
        weights = load_file(folder / file)
        change(weights)
        save_file(weights, folder / file)


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    make_model("vit").save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_saving_and_loading_is_bit_equal(make_model: Make, tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    digests = model.save(tmp_path / "first")
    again = ClipModel.load(tmp_path / "first")
    assert again.save(tmp_path / "second") == digests
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, again.net.state_dict()[name]), name
    assert digests == {p.name: file_sha256(p) for p in (tmp_path / "first").iterdir()}
    assert set(digests) == {"weights.safetensors", "config.json", "bpe.txt.gz"}


def test_half_precision_is_half_the_file_and_loads_as_fp32(make_model: Make, tmp_path: Path) -> None:
    model = make_model("vit")
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", torch.float16)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = ClipModel.load(tmp_path / "half")
    for name, value in model.net.state_dict().items():
        got = loaded.net.state_dict()[name]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.half().float() if value.is_floating_point() else value)


def test_a_loaded_model_is_in_eval_mode_without_gradients(folder: Path) -> None:
    model = ClipModel.load(folder)
    assert not any(module.training for module in model.net.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (lambda c: c.update(family="diffusion"), "config.json", "family 'diffusion'"),
        (lambda c: c.update(schema=2), "config.json", "schema 1"),
        (lambda c: c.pop("preprocess"), "config.json", "'preprocess'"),
        (lambda c: c["preprocess"].update(interpolation="lanczos"), "config.json", "lanczos"),
        (lambda c: c["tokenizer"].update(kind="hf"), "config.json", "kind 'simple'"),
        (lambda c: c["model_cfg"].update(surprise=1), "config.json", "open_clip CLIP"),
        (
            lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="resnet18"),
            "config.json",
            "timm_model_name",
        ),
        (lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="bert"), "config.json", "hf_model_name"),
        (lambda c: c["model_cfg"]["text_cfg"].update(pool_type="last"), "config.json", "end-of-text"),
        (lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True), "config.json", "causal"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(block_type="custom"), "config.json", "CustomResidual"),
        (lambda w: w.pop("ln_final.weight"), "weights.safetensors", "lack ln_final.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "weights.safetensors", "hold extra"),
        (lambda w: w.update({"visual.proj": torch.zeros(3)}), "weights.safetensors", "visual.proj is"),
        (lambda w: w.update({"visual.proj": w["visual.proj"].double()}), "weights.safetensors", "float64"),
        (lambda w: w["visual.proj"].view(-1)[5].fill_(torch.nan), "weights.safetensors", "visual.proj holds"),
        (
            lambda w: w["ln_final.bias"].view(-1)[0].fill_(torch.inf),
            "weights.safetensors",
            "ln_final.bias holds",
        ),
    ],
)
def test_what_is_not_a_sound_clip_model_is_refused_by_name(
    folder: Path, change: Callable[[dict[str, Any]], object], file: str, message: str
) -> None:
    rewrite(folder, change, file)
    with pytest.raises(ModelError, match=message):
        ClipModel.load(folder)


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json", "bpe.txt.gz"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_missing_or_broken_file_is_one_sentence(folder: Path, file: str, damage: str) -> None:
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage == "cut short":
        (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        ClipModel.load(folder)


def test_a_pickle_named_safetensors_is_not_executed(folder: Path) -> None:
    marker = folder / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return marker.touch, ()

    torch.save(Payload(), folder / "weights.safetensors")
    with pytest.raises(ModelError):
        ClipModel.load(folder)
    assert not marker.exists()


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ClipModel.load(folder)
    assert torch.equal(torch.rand(1), expected)


def test_a_text_ends_with_the_highest_id(make_model: Make) -> None:
    ids = make_model("vit").tokenize(["a red square", " ".join(["square"] * 40)])
    assert ids.shape == (2, 12)
    assert ids[0].max() == ids[1, -1] == 813  # 512 characters, 300 merges, start and end: also when cut


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (50, 40), (33, 71), (32, 33), (35, 32), (37, 53)])
def test_preprocessing_is_open_clips(make_model: Make, shape: tuple[int, int]) -> None:
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (*(side // 6 for side in shape), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    reference = image_transform(32, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)(image)
    ours = make_model("vit").preprocess(np.array(image)[None])[0]
    # Within the rounding of Pillow's 8-bit resampling, in units of std.
    assert (ours - reference).abs().max() <= 1.01 / 255 / 0.25


def test_images_are_resized_and_cut_at_torchvisions_pixels() -> None:
    rng = np.random.default_rng(0)
    shapes = [(32, 33), (33, 32), (32, 35), (37, 53), (53, 37), (224, 225), *rng.integers(20, 300, (200, 2))]
    mismatched = []
    for size, shape in product((32, 49), shapes):
        images = torch.from_numpy(rng.integers(0, 256, (1, *shape, 3), dtype=np.uint8))
        transform = v2.Compose(
            [
                v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        ours = Preprocess(size, (0.0,) * 3, (1.0,) * 3, "bicubic")(images, torch.device("cpu"))
        if not torch.allclose(ours, transform(images.permute(0, 3, 1, 2)), atol=1e-6):
            mismatched.append((size, *map(int, shape)))
    assert not mismatched


@pytest.mark.parametrize("side", [16, 40])
def test_pixels_keep_their_channels_last(make_model: Make, side: int) -> None:
    # What convolutions on a CPU are fastest on; a stray .contiguous() would double their time unseen.
    pixels = make_model("vit").preprocess(np.zeros((2, side, side, 3), dtype=np.uint8))
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), np.zeros((2, 3, 32, 32), np.uint8)]
)
def test_images_of_another_kind_are_refused(make_model: Make, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        make_model("vit").encode_images(images)


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_staged_features_are_open_clips(model: ClipModel, micro_batch: int) -> None:
    # Texts of several lengths, with and without a common beginning, one of them empty.
    texts = ["a red square", "a red disc", "", "a drawing of a blue cross.", "yellow", "a red square"]
    images = np.random.default_rng(1).integers(0, 256, (7, 40, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        image = functional.normalize(model.net.encode_image(model.preprocess(images)), dim=-1)
        text = functional.normalize(model.net.encode_text(model.tokenize(texts)), dim=-1)
    torch.testing.assert_close(model.encode_images(images, micro_batch), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_texts(texts, micro_batch), text, atol=1e-6, rtol=0)


def test_text_features_and_gradients_are_open_clips_without_the_padding(model: ClipModel) -> None:
    tokens = model.tokenize(["a red square", "", "yellow"])
    assert_open_clips_without_padding(model, tokens, "transformer")


def test_features_from_any_stage_follow_an_edit_of_that_stage(model: ClipModel) -> None:
    # Catches a weight assigned to a stage before or after the one that uses it.
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    texts = ["a red square", "a red disc", "a drawing of a blue cross."]
    groups = torch.tensor([0, 0, 1])
    start = {"vision": model.image_batches(images), "text": model.text_batches(texts, groups)}
    for layer in model.candidates():
        tower, parameter = model.staged(layer.tower), model.parameters[layer.name]
        stage = tower.stage_of(layer.name)
        with torch.no_grad():
            entering = tower.run(start[layer.tower], 0, stage, 64)
            parameter.mul_(1.5)
            resumed = tower.features(entering, stage, 3, 64)
            whole = tower.features(start[layer.tower], 0, 3, 64)
            too_late = tower.run(start[layer.tower], 0, stage + 1, 64)[0].own
            parameter.div_(1.5)
            before = tower.run(start[layer.tower], 0, stage + 1, 64)[0].own
        assert torch.equal(resumed, whole), layer.name
        assert not torch.equal(too_late, before), layer.name


def test_candidates_are_the_weights_slug_may_edit(make_model: Make) -> None:
    for kind, present in (("vit", "visual.ln_pre.weight"), ("rn", "visual.bn1.weight")):
        model = make_model(kind)
        names = {c.name for c in model.candidates()}
        assert {present, "visual.conv1.weight", "text_projection", "ln_final.weight"} <= names
        assert names == {n for n in model.parameters if not any(word in n for word in EXCLUDED)}
        assert {c.tower for c in model.candidates() if c.name.startswith("visual.")} == {"vision"}
        assert all(model.parameters[c.name].shape == c.shape for c in model.candidates())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters.values())


def test_a_weight_that_no_feature_uses_is_no_candidate(make_model: Make) -> None:
    model = make_model("vit")
    model.net.visual.register_parameter("spare", torch.nn.Parameter(torch.ones(2)))
    model.parameters = dict(model.net.named_parameters())
    assert "visual.spare" not in {c.name for c in model.candidates()}
