"""The UnlearnCanvas protocol: prompts, seeds, class lists and classifiers of the user's folder."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from contracts.errors import InputError, ModelError
from data.unlearn_canvas import PHOTOS, SEEDS, canvas_cells, classes, load_classifier

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "objects.txt").write_text("Dogs\nHuman_Figures\n\nTrees\n")
    (tmp_path / "styles.txt").write_text("Cartoon\nVan_Gogh\n")
    return tmp_path


def test_every_object_in_every_style_with_the_five_official_seeds(folder: Path) -> None:
    cells = canvas_cells(classes(folder, "object"), classes(folder, "style"))
    assert len(cells) == 3 * 2 * 5
    assert SEEDS == (188, 288, 588, 688, 888)
    assert {c.seed for c in cells} == set(SEEDS)
    assert cells[0].prompt == "A Dogs image in Cartoon style."
    assert "A Human Figures image in Van Gogh style." in {c.prompt for c in cells}
    assert {(c.object, c.style) for c in cells} == {(o, s) for o in range(3) for s in range(2)}


def test_photographs_are_a_class_of_the_classifier_and_no_style_to_draw() -> None:
    cells = canvas_cells(("Dogs",), ("Cartoon", PHOTOS, "Van_Gogh"), seeds=(1,))
    assert [cell.prompt for cell in cells] == [
        "A Dogs image in Cartoon style.",
        "A Dogs image in Van Gogh style.",
    ]
    assert [cell.style for cell in cells] == [0, 2]  # places among the classifier's outputs


@pytest.mark.parametrize("text", [None, "one\n", "a\nb\na\n"])
def test_class_lists_that_cannot_be_are_refused(folder: Path, text: str | None) -> None:
    (folder / "styles.txt").unlink()
    if text is not None:
        (folder / "styles.txt").write_text(text)
    with pytest.raises(InputError, match=r"styles\.txt"):
        classes(folder, "style")


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(TINY, pretrained=False, num_classes=2).eval()


@pytest.mark.parametrize("kind", ["safetensors", "bare pth", "the benchmark's pth"])
def test_a_classifier_is_read_without_unpickling(folder: Path, net: torch.nn.Module, kind: str) -> None:
    state = net.state_dict()
    if kind == "safetensors":
        save_file(state, folder / "style50.safetensors")
    else:
        torch.save(state if kind == "bare pth" else {"model_state_dict": state}, folder / "style50.pth")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    logits = load_classifier(folder, "style", TINY)(images)
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_pictures_reach_the_classifier_as_the_benchmark_s_own_evaluation_prepares_them(
    folder: Path, net: torch.nn.Module
) -> None:
    save_file(net.state_dict(), folder / "style50.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    logits = load_classifier(folder, "style", TINY)(images)

    def expected(interpolation: transforms.InterpolationMode) -> torch.Tensor:
        steps = [transforms.Resize((224, 224), interpolation), transforms.ToTensor()]
        prepare = transforms.Compose([*steps, transforms.Normalize([0.5], [0.5])])
        with torch.no_grad():
            return net(torch.stack([prepare(Image.fromarray(image)) for image in images]))

    error = (logits - expected(transforms.InterpolationMode.BILINEAR)).abs().max()
    assert error < 0.1 * (logits - expected(transforms.InterpolationMode.BICUBIC)).abs().max()


def test_a_missing_or_other_classifier_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"style50_cls\.pth is missing"):
        load_classifier(folder, "object", TINY)
    save_file({"head.weight": torch.zeros(2, 3)}, folder / "style50.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        load_classifier(folder, "style", TINY)
    with pytest.raises(ModelError, match="no architecture 'vit_none'"):
        load_classifier(folder, "style", "vit_none")

    class Payload:
        def __reduce__(self):
            return (folder / "executed").touch, ()

    torch.save(Payload(), folder / "style50_cls.pth")
    with pytest.raises(ModelError, match="more than tensors"):
        load_classifier(folder, "object", TINY)
    assert not (folder / "executed").exists()
