"""Attention on a packed batch: Triton kernels against their plain twin and fp64, forward and backward."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tunesmith.model.native.attention import packed_attention_plain
from tunesmith.model.native.decoder import alibi_slopes
from tunesmith.model.native.kernels.attention_triton import (
    attention_backward_triton,
    attention_forward_triton,
)
from tunesmith.model.native.packed_batch import pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Row:
    def __init__(self, length: int) -> None:
        self.ids, self.loss_mask = [1] * length, [True] * length


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: object, slopes: torch.Tensor | None,
              window: int | None) -> torch.Tensor:
    """Written out in fp64 over one N x N mask."""
    N, H, D = q.shape
    k, v = (each.repeat_interleave(H // k.shape[1], dim=1) for each in (k, v))
    sample = torch.zeros(N, dtype=torch.int64, device=q.device)
    for number, (start, stop) in enumerate(spans):  # type: ignore[arg-type]
        sample[start:stop] = number
    at = torch.arange(N, device=q.device)
    seen = (sample[:, None] == sample) & (at[:, None] >= at)
    if window is not None:
        seen &= at[:, None] - at < window
    s = torch.einsum("nhd,mhd->hnm", q, k) / D ** 0.5
    if slopes is not None:
        s = s + slopes.double()[:, None, None] * (at - at[:, None])
    return torch.einsum("hnm,mhd->nhd", s.masked_fill(~seen, float("-inf")).softmax(-1), v)


CASES = [  # lengths, heads, kv heads, width, alibi, window, bucket
    ([5, 1, 30, 2], 4, 4, 8, True, None, 16),
    ([1], 2, 1, 16, False, None, 1),
    ([100, 3, 70], 2, 1, 24, False, None, 1),
    ([150], 3, 3, 80, True, None, 1),
    ([60, 90, 7], 4, 2, 16, False, 20, 32),
    ([40, 33], 6, 6, 128, True, None, 128),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_twin_and_fp64_agree(case: tuple[list[int], int, int, int, bool, int | None, int],
                                     dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies no bf16 matrices; this case runs on a GPU")
    lengths, heads, kv_heads, width, alibi, window, bucket = case
    seed = int(torch.randint(2**31, (1,)))
    torch.manual_seed(seed)
    stream = pack([Row(n) for n in lengths], bucket=bucket, windows=(window,))
    N = len(stream.ids_N)
    qkv = torch.randn(N, heads + 2 * kv_heads, width, device=DEVICE).to(dtype)
    qkv[:, 0, 0] *= 20  # an outlier channel
    d_out = torch.randn(N, heads, width, device=DEVICE).to(dtype)
    total = sum(lengths)
    d_out[total:] = 0  # nothing is learnt from padding
    slopes = torch.tensor(alibi_slopes(heads), device=DEVICE) if alibi else None
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    first, last = stream.first_key_WN[0].to(DEVICE), stream.last_query_WN[0].to(DEVICE)

    exact = [each.double().requires_grad_() for each in (q, k, v)]
    out64 = reference(*exact, stream.spans, slopes, window)
    out64.backward(d_out.double())

    out, lse = attention_forward_triton(q, k, v, first, slopes)
    grads = torch.full_like(qkv, float("nan"))
    attention_backward_triton(d_out, q, k, v, out, lse, first, last, slopes,
                              *grads.split([heads, kv_heads, kv_heads], dim=1))
    plain = [each.float().detach().requires_grad_() for each in (q, k, v)]
    out_plain = packed_attention_plain(*plain, stream.spans, slopes, window)
    out_plain.backward(d_out.float())

    def far(found: torch.Tensor, true: torch.Tensor) -> float:
        return ((found.double() - true).norm() / true.norm()).item()

    wanted = [out64, *(each.grad for each in exact)]
    kernel = [out, *grads.split([heads, kv_heads, kv_heads], dim=1)]
    twin = [out_plain, *(each.grad for each in plain)]
    assert all(each.isfinite().all() for each in kernel), seed
    for name, true, triton_value, plain_value in zip("oqkv", wanted, kernel, twin, strict=True):
        if N == 1 and name in "qk":  # a softmax over one key has no gradient
            continue
        true, triton_value, plain_value = true[:total], triton_value[:total], plain_value[:total]
        assert far(plain_value, true) < 2e-5, (name, seed)
        assert far(triton_value, true) < TOLERANCE[dtype], (name, seed)


def test_a_stream_knows_when_all_its_samples_are_of_one_length() -> None:
    assert pack([Row(64), Row(64)], bucket=128).length == 64
    assert pack([Row(7), Row(7), Row(7)]).length == 7
    assert pack([Row(64), Row(63)]).length == 0
    assert pack([Row(64), Row(64), Row(64)],
                bucket=128).length == 0, "padding at the end is a sample of another length"


@pytest.mark.parametrize("alibi", [True, False])
def test_a_perturbed_sample_leaves_every_other_bit_identical(alibi: bool) -> None:
    heads, width = 2, 16
    stream = pack([Row(n) for n in (20, 45, 3, 31)], bucket=32)
    N = len(stream.ids_N)
    q, k, v = torch.randn(3, N, heads, width, device=DEVICE)
    slopes = torch.tensor(alibi_slopes(heads), device=DEVICE) if alibi else None
    first = stream.first_key_WN[0].to(DEVICE)
    before, _ = attention_forward_triton(q, k, v, first, slopes)
    for each in (q, k, v):
        each[20:65] = torch.randn_like(each[20:65]) * 100
    after, _ = attention_forward_triton(q, k, v, first, slopes)
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[65:], after[65:])
    assert not torch.equal(before[20:65], after[20:65])
