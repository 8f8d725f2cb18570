"""One torch thread: what a tiny model learns, and so what the tests see, depends on their number."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
