"""The device that poses refuses what CUDA refuses; every family, and every method for CLIP, runs on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import posing_device

ROOT = Path(__file__).resolve().parents[3]
THERE = {
    "mixed": "here + there",
    "mixed with a scalar of its own": "here + there.sum()",
    "an index of its own": "here[there.long()]",
    "a value of the CPU": "there.index_put_((here.long(),), here)",
    "a generator of the CPU": "torch.rand(3, device='posing', generator=torch.Generator())",
    "numpy": "there.numpy()",
    "no deterministic kernel": "there.kthvalue(1)",
    "fine": "(there + 1.5 + there[here.long()] + torch.arange(1, 4, device='posing')).sum().item()",
    "fine with a scalar of the CPU": "(there * torch.tensor(2.0)).tolist()",
    "fine in place": "there.add_(1.0).tolist()",
}
SCRIPT = """
import json, sys
import torch
from tests import posing_device
posing_device.install()
torch.use_deterministic_algorithms(True)
found = {}
for what, code in json.loads(sys.argv[1]).items():
    here, there = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]).to("posing")
    try:
        found[what] = eval(code)
    except Exception as error:
        found[what] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, object]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(THERE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("mixed", "RuntimeError: aten::add: expected all tensors to be on the same device"),
        ("mixed with a scalar of its own", "RuntimeError: aten::add: expected all tensors"),
        ("an index of its own", "RuntimeError: aten::index: indices of posing into a CPU tensor"),
        ("a value of the CPU", "RuntimeError: aten::index_put_: the values are on another device"),
        ("a generator of the CPU", "expected a generator of posing, got one of the CPU"),
        ("numpy", "numpy() is not supported"),
        ("no deterministic kernel", "aten::kthvalue does not have a deterministic implementation"),
    ],
)
def test_what_cuda_refuses_is_refused(said: dict[str, object], what: str, message: str) -> None:
    assert message in str(said[what])


def test_what_cuda_does_is_done(said: dict[str, object]) -> None:
    assert said["fine"] == 3.0 + 4.5 + 3.0 + 6.0
    assert said["fine with a scalar of the CPU"] == [0.0, 2.0, 4.0]
    assert said["fine in place"] == [1.0, 2.0, 3.0]


def test_gradients_of_every_family_and_edits_of_a_clip_are_the_same_on_it() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [*command, "-k", "gradients or (edit and clip-vit)", "tests/unlearning/families/test_on_gpu.py"],
        cwd=ROOT,
        env={**os.environ, "SLUGLINE_TEST_DEVICE": posing_device.NAME},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "24 passed" in done.stdout
