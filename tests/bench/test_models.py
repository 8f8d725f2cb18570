"""Which model is measured: the reference models by name, any other by its folder."""

from pathlib import Path

import pytest

from bench.models import EMOJI, REAL, Base, base_model
from contracts.errors import InputError
from unlearning.families.config import WEIGHTS


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).touch()
    return folder


def test_a_reference_model_is_treated_by_its_own_rules(tmp_path: Path) -> None:
    folder = model_in(tmp_path / ".slugline/real-towers/model")
    assert base_model(tmp_path, REAL) == Base(REAL, folder, REAL)


@pytest.mark.parametrize(("name", "command"), [(EMOJI, "dvc pull"), (REAL, "slugline models real-towers")])
def test_one_that_is_not_there_says_what_brings_it(tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(InputError, match=f"{name} is not in .*; run: {command}"):
        base_model(tmp_path, name)


def test_a_folder_is_treated_like_the_first_reference_model_unless_told(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "mine")
    assert base_model(tmp_path, str(folder)) == Base("mine", folder, EMOJI)
    assert base_model(tmp_path, str(folder), REAL).rules == REAL


@pytest.mark.parametrize("written", ["reference", "model"])  # by data.train, by data.real_towers
def test_what_training_wrote_is_found_in_its_folder(tmp_path: Path, written: str) -> None:
    folder = model_in(tmp_path / "seed-8" / written)
    assert base_model(tmp_path, str(tmp_path / "seed-8")) == Base("seed-8", folder, EMOJI)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no weights.safetensors.*emoji-clip, real-clip"):
        base_model(tmp_path, str(tmp_path))
