"""Training computes in bfloat16 where the processor does, and in fp32 where it would be emulated."""

import pytest
import torch

from data.precision import half_where_native


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_taken_in_half_precision_only_where_the_processor_has_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    weight = torch.ones(4, 4)
    with half_where_native():
        assert (weight @ weight).dtype == dtype
