"""Unlearning on CLIP models in pure PyTorch: usable from a notebook, knows no pipeline.

    model = ClipModel.load(folder)
    with deterministic(seed=0, threads=1):
        outcome = unlearn(model, inputs, Method())   # edits the model in place
    model.save(other_folder)

A method is one file (`slug`), a model family one adapter (`families.clip`).
"""

from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.request import Outcome, Profile, UnlearnInputs
from unlearning.slug import profile_layers, search_and_edit, unlearn

__all__ = [
    "ClipModel",
    "Outcome",
    "Profile",
    "UnlearnInputs",
    "deterministic",
    "profile_layers",
    "search_and_edit",
    "unlearn",
]
