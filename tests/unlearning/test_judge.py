"""The independent judge: as files, and what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from unlearning.judge import Judge, JudgeConfig, JudgeNet, Verdicts, recognised

CONFIG = JudgeConfig(1, 16, 4, ("c-00000000", "c-00000001", "c-00000002"), ("s-00000000", "s-00000001"))


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(CONFIG, JudgeNet(4, 3, 2).state_dict())


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_a_saved_judge_says_the_same(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    said, again = judge(IMAGES), Judge.load(tmp_path)(IMAGES)
    assert said.objects.shape == (5, 3)
    assert said.styles.shape == (5, 2)
    for name in ("objects", "styles", "features"):
        assert torch.equal(getattr(said, name), getattr(again, name))


def test_it_says_the_same_of_a_picture_among_others(judge: Judge) -> None:
    together, apart = judge(IMAGES), judge(IMAGES, micro_batch=2)
    torch.testing.assert_close(together.objects, apart.objects)


def test_what_is_no_judge_or_no_picture_is_refused(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Judge.load(tmp_path)
    judge.save(tmp_path)
    (tmp_path / "judge.json").write_text('{"schema": 1, "surprise": 1}')
    with pytest.raises(ModelError, match="surprise"):
        Judge.load(tmp_path)
    with pytest.raises(InputError, match="uint8"):
        judge(IMAGES[:, :8])


def test_recognised_counts_both_only_where_both_are_right() -> None:
    said = Verdicts(torch.eye(3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.zeros(3, 1))
    assert recognised(said, [0, 1, 0], [0, 0, 0]) == pytest.approx(
        {"object": 2 / 3, "style": 2 / 3, "both": 1 / 3}
    )
