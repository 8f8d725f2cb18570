"""Training computes in bfloat16 where the processor does, and in fp32 where it would be emulated."""

import pytest
import torch

from data.precision import half_where_native

WITHOUT = {"avx2": True, "avx512_f": True, "avx512_bw": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        (WITHOUT, torch.float32),
        ({"neon": True}, torch.float32),
        ({**WITHOUT, "avx512_bf16": True}, torch.bfloat16),
        ({**WITHOUT, "amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_products_are_taken_in_half_precision_only_where_the_processor_has_it(monkeypatch, able, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    weight = torch.ones(4, 4)
    with half_where_native():
        assert (weight @ weight).dtype == dtype


def test_torch_says_what_this_processor_is_able_to():
    able = torch.cpu.get_capabilities()
    assert able["architecture"]
    if able["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16"} <= able.keys()
