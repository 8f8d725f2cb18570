"""What a request's inputs must satisfy, and that messages name no person or caption."""

from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import InputError
from unlearning.families.diffusion_request import DiffusionRequest, Drawings
from unlearning.families.diffusion_split import Prompts
from unlearning.families.restoration_request import Pairs, RestorationRequest
from unlearning.families.vlm_request import VlmRequest
from unlearning.methods import instance_unlearning, scrub
from unlearning.request import Profile
from unlearning.retain_statistics import KnownRetain, RetainStatistics, Wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ()}, "at least one"),
        ({"targets": (3, 3)}, "distinct"),
        ({"targets": (8,)}, "0..7"),
        ({"targets": (-1,)}, "0..7"),
        ({"class_names": ("x",)}, "8 class ids must be distinct and match 1 names"),
        ({"class_names": (*"abcdefa", "h")}, "classes c-00000000 and c-00000006 have the same name"),
        ({"class_ids": ("c-1",) * 8}, "distinct"),
        ({"forget_captions": ("x",)}, "6 images do not match 1 forget captions"),
        ({"retain_captions": ()}, "42 images do not match 0 retain captions"),
        ({"retain_captions": ("Ada Lovelace",) * 42}, "all alike"),
        ({"forget_images": np.zeros((0, 32, 32, 3), np.uint8), "forget_captions": ()}, "0 images"),
        (
            {"forget_images": np.zeros((6, 32, 32, 3), np.float32)},
            r"forget images must be uint8 \(N, H, W, 3\), got float32 \(6, 32, 32, 3\)",
        ),
        (
            {"retain_images": np.zeros((42, 3, 32, 32), np.uint8)},
            r"retain images must be .*got uint8 \(42, 3, 32, 32\)",
        ),
        (
            {"search_images": np.zeros((32, 32, 32), np.uint8)},
            r"search images must be .*got uint8 \(32, 32, 32\)",
        ),
        (
            {"search_images": np.zeros((32, 32, 32, 4), np.uint8)},
            r"search images must be .*got uint8 \(32, 32, 32, 4\)",
        ),
        ({"retain_images": np.zeros((42, 0, 32, 3), np.uint8)}, r"got uint8 \(42, 0, 32, 3\)"),
        ({"templates": ()}, r"at least one template, got \(\)"),
        ({"templates": ("a {}", "")}, "exactly once, got ''"),
        ({"templates": ("an emoji",)}, "exactly once, got 'an emoji'"),
        ({"templates": ("{} and {}",)}, "exactly once"),
        ({"forget_labels": np.array([3] * 5 + [2])}, "not a target"),
        ({"forget_labels": np.full(6, 2)}, "c-00000003 has no item in the forget set"),
        ({"search_labels": np.zeros(32, int)}, "c-00000003 has no item in the search set"),
        ({"search_labels": np.full(32, 3)}, "no item of a class to keep"),
        ({"search_labels": np.array([3] * 31 + [8])}, "0..7"),
        ({"search_labels": np.array([3] * 31 + [-1])}, "0..7"),
    ],
)
def test_contradicting_inputs_are_refused(task, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        task.inputs(3, **change)
    assert "Ada" not in str(caught.value)


def test_nothing_personal_is_in_what_a_log_or_a_traceback_shows(task) -> None:
    labels, pixels = np.array([0, 1]), np.zeros((2, 4, 4, 3), np.uint8)
    texts = ("Ada Lovelace in oils", "a ship in oils")
    inputs = task.inputs(3, class_names=("Ada Lovelace", *(f"n{i}" for i in range(7))))
    drawings, pairs = Drawings(pixels, texts, labels), Pairs(pixels, pixels, labels)
    one = {"class_ids": ("c-0", "c-1"), "targets": (0,)}
    first, last = np.array([True, False]), np.array([False, True])
    drawn = {
        "forget": Drawings(pixels[first], texts[:1], labels[first]),
        "retain": Drawings(pixels[last], texts[1:], labels[last]),
        "search": Prompts(texts, (1, 2), labels, labels),
    }
    values = [
        inputs,
        VlmRequest(inputs),
        drawings,
        drawn["search"],
        DiffusionRequest(
            **one,
            **drawn,
            goal=None,
            judging=lambda pictures: None,
            contexts=("{} in oils",),
            class_names=("Ada", "x"),
        ),
        pairs,
        RestorationRequest(**one, forget=pairs.of([0]), retain=pairs.of([1]), search=pairs),
        Profile({}, {"c-0": {"w": torch.ones(2)}}),
        instance_unlearning._Images(torch.ones(2), torch.ones(2)),
        scrub._Teacher(torch.ones(2), torch.ones(2), texts, texts),
        KnownRetain(RetainStatistics(Wanted(("text",), 2, 64, 0), 2, {}, {}), torch.arange(2), pixels, texts),
    ]
    for value in values:
        shown = f"{value} {value!r}"
        assert type(value).__name__ in shown
        assert not [word for word in ("Ada", "oils", "array", "tensor") if word in shown]
