"""Unlearning in pure PyTorch, on CLIP and other models: usable from a notebook, knows no pipeline.

    model = ClipModel.load(folder)
    with deterministic(seed=0, threads=1):
        outcome = unlearn(model, inputs, Method())   # edits the model in place
    model.save(other_folder)

A method is one file in `methods`, a model family one adapter in `families`.
"""

from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.methods import edit, profile, unlearn
from unlearning.request import Outcome, Profile, UnlearnInputs

__all__ = [
    "ClipModel",
    "Outcome",
    "Profile",
    "UnlearnInputs",
    "deterministic",
    "edit",
    "profile",
    "unlearn",
]
