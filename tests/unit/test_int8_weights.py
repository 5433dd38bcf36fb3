"""int8 on loading, without bitsandbytes, held to bitsandbytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.model.libraries import import_bitsandbytes
from tunesmith.model.native.weights import build_weight
from tunesmith.model.quantization import int8

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def same_as_bitsandbytes(weight_OI: torch.Tensor) -> None:
    want_OI, want_O, _ = import_bitsandbytes().functional.int8_vectorwise_quant(weight_OI.to(torch.float16))
    got_OI, got_O = int8.quantise_rows(weight_OI)
    assert (got_OI.dtype, got_O.dtype) == (torch.int8, torch.float32)
    assert torch.equal(got_O, want_O)
    assert torch.equal(got_OI, want_OI)


@given(outputs=st.integers(1, 40), inputs=st.integers(1, 70), exponent=st.integers(-24, 14),
       dtype=st.sampled_from(DTYPES), outliers=st.integers(0, 5), zero_rows=st.integers(0, 3),
       at_once=st.sampled_from([1, 64, 1 << 24]), seed=st.integers(0, 2**31))
def test_int8_is_bitsandbytes_to_the_bit(outputs: int, inputs: int, exponent: int, dtype: torch.dtype,
                                         outliers: int, zero_rows: int, at_once: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 2.0**exponent
    for _ in range(outliers):
        at = torch.randint(outputs, (1,),
                           generator=generator), torch.randint(inputs, (1,), generator=generator)
        weight_OI[at] *= 300
    weight_OI = weight_OI.clamp(-65504, 65504)
    weight_OI[torch.randint(outputs, (zero_rows,), generator=generator)] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "_VALUES_AT_ONCE", at_once)
        same_as_bitsandbytes(weight_OI.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_at_the_ends_of_fp16_and_at_ties(dtype: torch.dtype) -> None:
    least = 2.0**-24
    weight_OI = torch.tensor([[65504.0, -65504, 1, 0], [least, -least, 0, least], [0, 0, 0, 0],
                              [-0.0, 0, 0, 0], [127, 0.5, 1.5, -2.5], [-127, 126.5, -126.5, 3.5]])
    same_as_bitsandbytes(weight_OI.clamp(-65280, 65280).to(dtype) if dtype == torch.bfloat16
                         else weight_OI.to(dtype))


@pytest.mark.parametrize("strange", [float("inf"), -float("inf"), float("nan"), 1e6])
def test_a_row_that_fp16_cannot_hold_leaves_the_others_alone(strange: float) -> None:
    weight_OI = torch.randn(3, 8)
    weight_OI[1, 4] = strange
    q_OI, absmax_O = int8.quantise_rows(weight_OI)
    assert not q_OI[1].any()
    assert not absmax_O[1].isfinite()
    assert torch.equal(q_OI[[0, 2]], int8.quantise_rows(weight_OI[[0, 2]])[0])


def test_a_weight_is_its_multiples_and_their_scale() -> None:
    weight_OI = torch.randn(5, 48)
    kept = build_weight(weight_OI, "int8", torch.float32)
    assert torch.equal(kept.dense(), kept.parts["q"] * kept.parts["scale"][:, None])
    assert ((kept.dense() - weight_OI).abs() <= 0.57 * kept.parts["scale"][:, None]).all()
    transposed = build_weight(weight_OI.T.contiguous().T, "int8", torch.float32)
    assert torch.equal(transposed.parts["q"], kept.parts["q"])
