"""Zero-shot ranks and rates."""

import pytest
import torch
from torch.nn import functional

from contracts.errors import InputError, ModelError
from unlearning.families.clip import ClipModel
from unlearning.zero_shot import (
    class_embeddings,
    classification_ranks,
    fill_templates,
    rate_at,
    retrieval_ranks,
)

LABELS = torch.tensor([0, 1, 2])
SCORES = torch.tensor([[0.9, 0.5, 0.1], [0.7, 0.7, 0.2], [0.3, 0.3, 0.3]])


def test_a_rank_is_one_plus_the_classes_above_and_ties_go_against_us() -> None:
    assert classification_ranks(SCORES, LABELS, "best").tolist() == [1, 1, 1]
    assert classification_ranks(SCORES, LABELS, "worst").tolist() == [1, 2, 3]
    assert classification_ranks(SCORES, torch.tensor([2, 2, 0]), "best").tolist() == [3, 3, 1]


def test_a_collapsed_model_has_neither_forgotten_nor_kept() -> None:
    flat = torch.zeros(4, 10)
    labels = torch.tensor([1, 2, 3, 4])
    assert rate_at(classification_ranks(flat, labels, "best"), 5) == 1.0
    assert rate_at(classification_ranks(flat, labels, "worst"), 5) == 0.0
    assert rate_at(retrieval_ranks(flat, labels, labels, "best"), 1) == 1.0
    assert rate_at(retrieval_ranks(flat, labels, labels, "worst"), 1) == 0.0


def test_retrieval_asks_for_the_best_image_of_a_class() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.6, 0.3], [0.8, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    # Class 0: its best image (0.8) ties with an image of class 1; class 1: image 2 (0.3) is below image 0.
    assert retrieval_ranks(scores, labels, torch.tensor([0, 1]), "best").tolist() == [1, 2]
    assert retrieval_ranks(scores, labels, torch.tensor([0, 1]), "worst").tolist() == [2, 2]


def test_nan_scores_and_classes_without_images_are_errors() -> None:
    broken = SCORES.clone()
    broken[1, 2] = torch.nan
    for call in (
        lambda: classification_ranks(broken, LABELS, "best"),
        lambda: retrieval_ranks(broken, LABELS, LABELS, "best"),
    ):
        with pytest.raises(ModelError, match="NaN"):
            call()
    with pytest.raises(InputError, match="no image"):
        retrieval_ranks(SCORES, torch.tensor([0, 0, 1]), LABELS, "best")


def test_class_embeddings_average_normalised_templates(model: ClipModel) -> None:
    names, templates = ["red square", "a {} of braces"], ["{}", "a drawing of a {}."]
    ours = class_embeddings(model, names, templates, micro_batch=3)
    for row, name in enumerate(names):
        texts = model.text_features(model.tokenize([t.replace("{}", name) for t in templates]))
        expected = functional.normalize(texts.mean(dim=0), dim=-1)
        torch.testing.assert_close(ours[row], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("names", "templates"), [([], ["{}"]), (["a"], []), (["a"], ["no place"]), (["a"], ["{}{}"])]
)
def test_a_task_needs_names_and_templates_with_one_place(names: list[str], templates: list[str]) -> None:
    with pytest.raises(InputError):
        fill_templates(names, templates)
