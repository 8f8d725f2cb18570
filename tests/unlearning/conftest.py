"""Tiny CLIP models that know coloured shapes, so that forgetting one means something."""

import gzip
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from contracts.values import Method
from unlearning.families.clip import ClipModel
from unlearning.objectives import retain_loss
from unlearning.request import UnlearnInputs

SIZE = 32
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 210, 40)}
SHAPES = ("square", "cross")
NAMES = tuple(f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES))
TEMPLATES = ("a {}", "a drawing of a {}.")

TEXT = {"context_length": 12, "vocab_size": 814, "width": 32, "heads": 2, "layers": 2}
TRAINING_STEPS = {"vit": 300, "rn": 120}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIZE},
    "rn": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": SIZE},
}


def draw(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One (SIZE, SIZE, 3) drawing of NAMES[label]: jittered place, size, colour and ground."""
    colour, shape = NAMES[label].split()
    y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(13, 19, size=2)[:, None, None]
    r = rng.integers(7, 11)
    inside = {
        "square": (abs(x) <= r) & (abs(y) <= r),
        "disc": x**2 + y**2 <= r**2,
        "cross": ((abs(x) <= 2) | (abs(y) <= 2)) & (abs(x) <= r) & (abs(y) <= r),
    }[shape]
    image = np.full((SIZE, SIZE, 3), rng.integers(0, 60))
    image[inside] = COLOURS[colour]
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def items(
    per_class: int, seed: int, labels: Sequence[int] = range(len(NAMES))
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """`per_class` drawings of every label, shuffled."""
    rng = np.random.default_rng(seed)
    wanted = rng.permutation(np.repeat(np.array(labels), per_class))
    return np.stack([draw(int(label), rng) for label in wanted]), wanted


def captions(labels: NDArray[Any]) -> tuple[str, ...]:
    return tuple(TEMPLATES[i % len(TEMPLATES)].replace("{}", NAMES[label]) for i, label in enumerate(labels))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    """The first 300 merges of open_clip's vocabulary: 814 tokens."""
    whole = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode()
    return gzip.compress("\n".join(whole.split("\n")[:301]).encode(), mtime=0)


@pytest.fixture(scope="session")
def make_model(vocabulary: bytes) -> Callable[..., ClipModel]:
    """A model with random weights: make_model("vit" or "rn"), with changes to its vision_cfg."""

    def make(kind: str, seed: int = 0, **vision: Any) -> ClipModel:
        model_cfg = {
            "embed_dim": 24,
            "vision_cfg": {**VISION[kind], **vision},
            "text_cfg": dict(TEXT),
        }
        config = {
            "schema": 1,
            "family": "clip",
            "architecture": None,
            "model_cfg": model_cfg,
            "preprocess": {"size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
            "tokenizer": {"kind": "simple", "context_length": TEXT["context_length"], "vocab": "bpe.txt.gz"},
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = open_clip.model.CLIP(**model_cfg)
            for name, parameter in net.named_parameters():
                if name.endswith("bn3.weight"):  # open_clip starts residual branches at zero
                    torch.nn.init.constant_(parameter, 0.5)
        return ClipModel(config, net.state_dict(), vocabulary)

    return make


@pytest.fixture(scope="module")
def fresh(make_model: Callable[..., ClipModel]) -> Callable[[], ClipModel]:
    """One model with random weights, its weights put back at each call."""
    model = make_model("vit")
    original = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}

    def put_back() -> ClipModel:
        model.net.load_state_dict(original)
        return model

    return put_back


def assert_open_clips_without_padding(model: ClipModel, tokens: torch.Tensor, block: str) -> None:
    """Text features and gradients are open_clip's own; `block` sees the tokens of the longest text alone."""
    layers = [c.name for c in model.candidates() if c.tower == "text"]
    weights = [model.parameters[layer].requires_grad_() for layer in layers]
    sizes: list[int] = []
    model.net.get_submodule(block).register_forward_hook(lambda _, args, out: sizes.append(args[0].shape[1]))
    text = model.text_features(tokens)
    expected = functional.normalize(model.net.encode_text(tokens), dim=-1)
    torch.testing.assert_close(text, expected, atol=1e-6, rtol=0)
    direction = torch.randn(text.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((text * direction).sum(), weights)
    for own, whole in zip(found, torch.autograd.grad((expected * direction).sum(), weights), strict=True):
        torch.testing.assert_close(own, whole, atol=1e-5, rtol=1e-4)
    assert sizes == [int(model.text_lengths(tokens).max()), tokens.shape[1]]
    assert sizes[0] < sizes[1]


def train(model: ClipModel, steps: int, rate: float = 3e-3, per_class: int = 1) -> None:
    """Fit a tiny model to the drawings, `per_class` of every class in a batch.

    In double precision: in single, rounding differs between processors, training makes it grow, and what the
    tests then find in the model would be another thing on each machine.
    """
    images, labels = items(20, seed=1)
    pixels, tokens = model.preprocess(images).double(), model.tokenize(captions(labels))
    draw_batch = torch.Generator().manual_seed(0)
    model.net.double().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=rate)
    for _ in range(steps):
        order = torch.randperm(len(labels), generator=draw_batch)
        drawn = torch.as_tensor(labels)[order]
        rows = torch.cat([order[drawn == c][:per_class] for c in range(len(NAMES))])
        loss = retain_loss(
            model.image_features(pixels[rows]), model.text_features(tokens[rows]), torch.tensor(10.0)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.net.float().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def _trained(make_model: Callable[..., ClipModel]) -> dict[str, dict[str, torch.Tensor]]:
    states = {}
    for kind in VISION:
        model = make_model(kind)
        train(model, TRAINING_STEPS[kind])
        states[kind] = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    return states


@pytest.fixture(params=["vit", "rn"])
def model(
    request: pytest.FixtureRequest,
    make_model: Callable[..., ClipModel],
    _trained: dict[str, dict[str, torch.Tensor]],
) -> ClipModel:
    """A trained model with a ViT, then one with a ModifiedResNet vision tower; yours to change."""
    model = make_model(request.param)
    model.net.load_state_dict(_trained[request.param])
    return model


@dataclass(frozen=True)
class Task:
    """What the tests ask: `inputs` for the given targets, and a method that fits the tiny task."""

    method: Method

    def inputs(self, *targets: int, **changes: Any) -> UnlearnInputs:
        kept = [c for c in range(len(NAMES)) if c not in targets]
        forget_images, forget_labels = items(6, seed=2, labels=targets)
        retain_images, retain_labels = items(6, seed=3, labels=kept)
        search_images, search_labels = items(4, seed=4)
        return UnlearnInputs(
            **{
                "class_ids": tuple(f"c-{i:08x}" for i in range(len(NAMES))),
                "class_names": NAMES,
                "templates": TEMPLATES,
                "targets": targets,
                "forget_images": forget_images,
                "forget_captions": captions(forget_labels),
                "forget_labels": forget_labels,
                "retain_images": retain_images,
                "retain_captions": captions(retain_labels),
                "search_images": search_images,
                "search_labels": search_labels,
                **changes,
            }
        )


@pytest.fixture
def task() -> Task:
    return Task(Method(forget_at=2, micro_batch=16, retain_batch=24))
