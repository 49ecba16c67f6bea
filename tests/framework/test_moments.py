"""Second moments that are kept from the diagonal on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimrun.ops.calibration.rdoq import moments
from slimrun.ops.format import products


@given(
    k=st.integers(1, 40),
    strip=st.sampled_from([1, 7, 16]),
    gathered=st.sampled_from([1, 6, 10, 99]),
    seed=st.integers(0, 99),
)
def test_a_packed_moment_is_the_moment(k: int, strip: int, gathered: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(moments, "STRIP", strip)
        patched.setattr(moments, "GATHERED", gathered)
        patched.setattr(products, "fast_bfloat16", lambda device: False)
        first, second = torch.randn(2, 5, k, generator=torch.Generator().manual_seed(seed)).unbind()
        moment = moments.Moment(first)
        moment.add(first)
        moment.add(second)
        packed = moment.packed()
        expected = first.t() @ first + second.t() @ second
        torch.testing.assert_close(moments.unpacked(packed, k), expected, rtol=1e-4, atol=1e-5)
    assert len(packed) <= k * (k + strip) / 2
