"""Each Triton kernel against its twin, and the twin against fp64 torch with autograd, on fresh inputs.

Without a GPU the kernels run in Triton's interpreter, which must be asked for before they are imported.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import numpy as np
import torch.nn.functional as F

from tunesmith.model.dropout import sample_seeds, token_keys
from tunesmith.model.native.kernels import (
    activations,
    cross_entropy,
    dequantize,
    dropout,
    formats,
    fp8,
    norm,
    rope,
)
from tunesmith.model.native.kernels import activations_triton as activations_t
from tunesmith.model.native.kernels import cross_entropy_triton as cross_entropy_t
from tunesmith.model.native.kernels import dequantize_triton as dequantize_t
from tunesmith.model.native.kernels import dropout_triton as dropout_t
from tunesmith.model.native.kernels import fp8_triton as fp8_t
from tunesmith.model.native.kernels import norm_triton as norm_t
from tunesmith.model.native.kernels import rope_triton as rope_t
from tunesmith.model.native.kernels.dispatch import power_of_two, use_triton, warps

Tensor = torch.Tensor
#: numpy, within the interpreter, warns where exp's result is meant to be infinite.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
#: Half a unit in the last place: the result is rounded once, at its end. For fp32, what its arithmetic loses.
HALF_ULP = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
seed = 0


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    """Each test draws inputs of its own; the seed is in what a failing assert says."""
    global seed
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def bf16_is_rounded_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy lacks bf16 and fp8; Triton's interpreter truncates where a GPU rounds to even; torch rounds."""
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source.name, target.name) == ("fp32", "fp8e4nv"):
            return torch.tensor(data).to(formats.FP8).view(torch.uint8).numpy()
        if (source.name, target.name) != ("fp32", "bf16"):
            return theirs(data, source, target, mode)
        return torch.tensor(data).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def randn(*shape: int, dtype: torch.dtype = torch.float32, outliers: bool = False) -> Tensor:
    """Normal numbers, a thousand times as large in two columns where `outliers`."""
    x = torch.randn(shape)
    if outliers:
        x[..., torch.randint(shape[-1], (2,)).unique()] *= 1000
    return x.to(DEVICE, dtype)


def check(got: Tensor, want: Tensor, dtype: torch.dtype, what: str, *, slack: float = 3e-6, halves: int = 1,
          floor: float = 1e-30) -> None:
    """Half an ulp of `dtype` (`halves`: 2 between two rounded tensors), and on top what fp32 arithmetic
    loses: `slack` times each row's greatest number, and `floor`.
    """
    assert got.shape == want.shape
    a, b = got.double(), want.double()
    assert a.isfinite().all(), f"{what}: not finite, seed {seed}"
    rows = b.abs().reshape(-1, b.shape[-1]).amax(1).view(*b.shape[:-1], 1) if b.dim() > 1 else b.abs().max()
    # fp16's subnormal numbers have fewer digits
    floor = max(floor, 1e-7) if dtype == torch.float16 else floor
    excess = (a - b).abs() - (halves * HALF_ULP[dtype] * b.abs() + slack * rows + floor)
    worst = int(excess.argmax())
    assert excess.max() <= 0, (
        f"{what}: {a.view(-1)[worst]} for {b.view(-1)[worst]} at {worst} of {tuple(b.shape)}, seed {seed}"
    )


def grad_of(function: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> Tensor:
    """The fp64 gradient of `function` at x by autograd."""
    x = x.double().requires_grad_()
    return torch.autograd.grad(function(x), x, d.double())[0]


# ---- dispatch


def test_dispatch_helpers() -> None:
    assert not use_triton(torch.zeros(1))
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 4096, 4097)] == [1, 2, 4, 4, 8, 4096, 8192]
    assert [warps(n) for n in (1, 256, 512, 4096, 16384)] == [1, 1, 2, 16, 16]


def test_tensors_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        activations_t.gelu_triton(randn(4, 6).t())
    with pytest.raises(ValueError, match="dense"):
        rope_t.rotate_triton_(randn(2, 2, 8)[..., ::2], randn(2, 2), randn(2, 2), False)


def test_public_functions_go_to_the_device_s_kernel() -> None:
    x, w = randn(3, 20), randn(20)
    here = norm_t.add_norm_triton if use_triton(x) else norm.add_norm_plain
    assert torch.equal(norm.add_norm(x, x, None, w, None, 1e-5)[1], here(x, x, None, w, None, 1e-5)[1])
    assert norm.add_norm_backward(x, None, x, w, None, w[:3]).shape == x.shape
    check(activations.gelu(x), activations.gelu_plain(x), x.dtype, "gelu", halves=2)
    check(activations.gelu_backward(x, x), activations.gelu_backward_plain(x, x), x.dtype, "gelu backward",
          halves=2)
    check(activations.swiglu(x), activations.swiglu_plain(x), x.dtype, "swiglu", halves=2)
    check(activations.swiglu_backward(x[:, :10].contiguous(), x),
          activations.swiglu_backward_plain(x[:, :10], x), x.dtype, "swiglu backward", halves=2)
    y = x.clone().view(3, 5, 4)
    rope.rotate_(y, w[:6].view(3, 2), w[6:12].view(3, 2), False)
    assert not torch.equal(y.view(3, 20), x)
    assert torch.equal(dropout.dropout(x, 0.5, keys_of(3), 1), dropout.dropout_plain(x, 0.5, keys_of(3), 1))
    check(cross_entropy.cross_entropy(x, torch.tensor([1, -100, 19], device=DEVICE), None),
          cross_entropy.cross_entropy_plain(x, torch.tensor([1, -100, 19], device=DEVICE), None), x.dtype,
          "loss")
    q = torch.ones(3, 20, dtype=torch.int8, device=DEVICE)
    assert torch.equal(dequantize.dequantize_int8(q, w[:3], torch.empty_like(x)), w[:3, None].expand(3, 20))


# ---- norm

SHAPES = [(1, 1), (3, 64), (2, 100), (5, 257), (2, 4099)]


@each_dtype
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(dtype: torch.dtype, kind: str, shape: tuple[int, int]) -> None:
    rows, channels = shape
    residual, delta = randn(*shape, dtype=dtype, outliers=True), randn(*shape, dtype=dtype)
    bias, weight, shift = randn(channels), randn(channels), randn(channels) if kind == "layer" else None
    for d, b in ((delta, bias), (delta, None), (None, bias), (None, None)):
        plain = norm.add_norm_plain(residual, d, b, weight, shift, 1e-5)
        triton = norm_t.add_norm_triton(residual, d, b, weight, shift, 1e-5)
        summed = residual.float() + (0 if d is None else d.float()) + (0 if b is None else b)
        if d is None and b is None:
            assert plain[0] is residual
            assert triton[0] is residual
        assert torch.equal(plain[0], summed.to(dtype)), seed
        assert torch.equal(triton[0], plain[0]), seed
        x, w = plain[0].double(), weight.double()
        normal = F.rms_norm if kind == "rms" else F.layer_norm
        want = normal(x, (channels,), w, eps=1e-5) + (0 if shift is None else shift.double())
        # x - mean cancels, so the error is one of the greatest x, not of the result
        slack = 3e-6 + (0 if shift is None else float(2e-7 * (x.abs().amax() * plain[3].max())))
        for name, (_, normed, mean, rstd) in (("plain", plain), ("triton", triton)):
            assert normed.dtype == dtype
            assert rstd.dtype == torch.float32
            check(normed, want, dtype, f"{name} normed", slack=slack)
            if kind == "rms":
                assert mean is None
                spread = x.square().mean(1)
            else:
                check(mean, x.mean(1), torch.float32, f"{name} mean")
                spread = x.var(1, unbiased=False)
            assert rstd.shape == (rows,)
            check(rstd, (spread + 1e-5).rsqrt(), torch.float32, f"{name} rstd", slack=1e-5)
        check(triton[1], plain[1], dtype, "triton and plain", slack=slack, halves=2)


@each_dtype
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_norm_backward(dtype: torch.dtype, kind: str, shape: tuple[int, int]) -> None:
    x, d = randn(*shape, dtype=dtype, outliers=True), randn(*shape, dtype=dtype)
    weight = randn(shape[1])
    shift = randn(shape[1]) if kind == "layer" else None
    _, _, mean, rstd = norm.add_norm_plain(x, None, None, weight, shift, 1e-5)
    normal = F.rms_norm if kind == "rms" else F.layer_norm
    want = grad_of(lambda x: normal(x, (shape[1],), weight.double(), eps=1e-5), x, d)
    # What cancels within the formula is as large as rstd times the row's greatest gradient.
    slack = float(3e-6 * ((d.float() * weight).abs().max() * rstd.max() / want.abs().amax(1).min()))
    for d_sum in (None, randn(*shape, dtype=dtype)):
        whole = want if d_sum is None else want + d_sum.double()
        plain = norm.add_norm_backward_plain(d, d_sum, x, weight, mean, rstd)
        triton = norm_t.add_norm_backward_triton(d, d_sum, x, weight, mean, rstd)
        assert plain.dtype == triton.dtype == dtype
        check(plain, whole, dtype, "plain", slack=slack)
        check(triton, whole, dtype, "triton", slack=slack)
        check(triton, plain, dtype, "triton and plain", slack=slack, halves=2)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_with_room(kind: str) -> None:
    x, weight, shift = randn(3, 40), randn(40), randn(40) if kind == "layer" else None
    for add_norm in (norm.add_norm_plain, norm_t.add_norm_triton):
        _, want, *_ = add_norm(x, x, None, weight, shift, 1e-5)
        _, got, *_ = add_norm(x, x, None, weight, shift, 1e-5, 24)
        assert got.stride() == (64, 1)
        assert torch.equal(got, want)


def test_norm_backward_leaves_its_inputs_alone() -> None:
    x, d, d_sum, weight = randn(3, 40), randn(3, 40), randn(3, 40), randn(40)
    kept = [t.clone() for t in (x, d, d_sum)]
    for mean in (None, randn(3)):
        norm.add_norm_backward_plain(d, d_sum, x, weight, mean, randn(3).abs())
        assert all(torch.equal(a, b) for a, b in zip((x, d, d_sum), kept, strict=True))


# ---- activations


def bloom_gelu(h: Tensor) -> Tensor:
    return 0.5 * h * (1 + torch.tanh(0.79788456 * h * (1 + 0.044715 * h * h)))


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (1, 2049), (2, 4099)], ids=str)
def test_gelu(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    h, da = randn(*shape, dtype=dtype, outliers=True) * 2, randn(*shape, dtype=dtype)
    want, d_want = bloom_gelu(h.double()), grad_of(bloom_gelu, h, da)
    plain, triton = activations.gelu_plain(h), activations_t.gelu_triton(h)
    d_plain, d_triton = activations.gelu_backward_plain(da, h), activations_t.gelu_backward_triton(da, h)
    for got in (plain, triton, d_plain, d_triton):
        assert got.dtype == dtype
    check(plain, want, dtype, "plain")
    check(triton, want, dtype, "triton")
    check(triton, plain, dtype, "triton and plain", halves=2)
    check(d_plain, d_want, dtype, "plain backward")
    check(d_triton, d_want, dtype, "triton backward")
    check(d_triton, d_plain, dtype, "triton and plain backward", halves=2)
    the_forward_comes_along(activations.gelu_backward_plain, da, h, d_plain, plain)
    the_forward_comes_along(activations_t.gelu_backward_triton, da, h, d_triton, triton)


def the_forward_comes_along(backward: Callable[..., Tensor], da: Tensor, x: Tensor, d: Tensor,
                            a: Tensor) -> None:
    """A backward pass that gives the forward's result again, beside the gradient or in its place."""
    again = torch.full_like(da, float("nan"))
    before = da.clone()
    assert torch.equal(backward(da, x, again), d)
    assert torch.equal(again, a)
    assert torch.equal(da, before)
    assert torch.equal(backward(before, x, before), d)
    assert torch.equal(before, a)


def silu_product(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=1)
    return gate / (1 + torch.exp(-gate)) * up


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 2049), (1, 4099)], ids=str)
def test_swiglu(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    # The outliers are in the gate alone: in both, fp16 overflows.
    x = torch.cat([randn(*shape, dtype=dtype, outliers=True), randn(*shape, dtype=dtype)], dim=1)
    da = randn(*shape, dtype=dtype)
    want, d_want = silu_product(x.double().clamp(min=-700)), grad_of(silu_product, x.clamp(min=-700), da)
    plain, triton = activations.swiglu_plain(x), activations_t.swiglu_triton(x)
    d_plain, d_triton = activations.swiglu_backward_plain(da, x), activations_t.swiglu_backward_triton(da, x)
    for got in (plain, triton, d_plain, d_triton):
        assert got.dtype == dtype
    check(plain, want, dtype, "plain")
    check(triton, want, dtype, "triton")
    check(triton, plain, dtype, "triton and plain", halves=2)
    check(d_plain, d_want, dtype, "plain backward")
    check(d_triton, d_want, dtype, "triton backward")
    check(d_triton, d_plain, dtype, "triton and plain backward", halves=2)
    the_forward_comes_along(activations.swiglu_backward_plain, da, x, d_plain, plain)
    the_forward_comes_along(activations_t.swiglu_backward_triton, da, x, d_triton, triton)


# ---- rope


@each_dtype
@pytest.mark.parametrize(("tokens", "heads", "size"),
                         [(1, 1, 2), (5, 3, 8), (4, 2, 24), (3, 5, 80), (2, 20, 128)])
def test_rotate(dtype: torch.dtype, tokens: int, heads: int, size: int) -> None:
    # queries, keys, values of a fused projection
    fused = randn(tokens, 3, heads, size, dtype=dtype, outliers=True)
    angle = torch.rand(tokens, size // 2, device=DEVICE) * 7
    cos, sin = angle.cos(), angle.sin()
    double_cos, double_sin = torch.cat([cos, cos],
                                       1).double()[:, None], torch.cat([sin, sin], 1).double()[:, None]

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=2)
        return x * double_cos + torch.cat([-right, left], dim=2) * double_sin

    x = fused[:, 1]
    for inverse, want in ((False, turned(x.double())), (True, grad_of(turned, x, x))):
        plain, triton = fused.clone(), fused.clone()
        rope.rotate_plain_(plain[:, 1], cos, sin, inverse)
        rope_t.rotate_triton_(triton[:, 1], cos, sin, inverse)
        check(plain[:, 1], want, dtype, "plain")
        check(triton[:, 1], want, dtype, "triton")
        check(triton, plain, dtype, "triton and plain", halves=2)
        for got in (plain, triton):
            assert torch.equal(got[:, ::2],
                               fused[:, ::2]), "the queries and values beside the keys were touched"


@each_dtype
def test_rotate_from_another_place(dtype: torch.dtype) -> None:
    source, angle = randn(5, 3, 16, dtype=dtype), randn(5, 8)
    kept, want = source.clone(), source.clone()
    rope.rotate_plain_(want, angle.cos(), angle.sin(), True)
    for rotate in (rope.rotate_plain_, rope_t.rotate_triton_):
        fused = torch.full((5, 7, 16), 3.0, dtype=dtype, device=DEVICE)
        rotate(fused[:, 2:5], angle.cos(), angle.sin(), True, source)
        check(fused[:, 2:5], want, dtype, rotate.__name__, halves=2)
        assert torch.equal(source, kept)
        assert (fused[:, :2] == 3).all()
        assert (fused[:, 5:] == 3).all()


def test_rotate_takes_heads_in_front_of_tokens() -> None:
    x, angle = randn(3, 7, 16), randn(7, 8)
    want = x.transpose(0, 1).contiguous()
    rope.rotate_plain_(want, angle.cos(), angle.sin(), False)
    for rotate in (rope.rotate_plain_, rope_t.rotate_triton_):
        got = x.clone()
        rotate(got.transpose(0, 1), angle.cos(), angle.sin(), False)
        check(got.transpose(0, 1), want, torch.float32, rotate.__name__)


# ---- dropout


def kept_by_formula(keys: Tensor, columns: int, p: float, salt: int) -> np.ndarray:
    """The mask again in numpy's unsigned numbers [N, C]."""
    def mix(h: np.ndarray) -> np.ndarray:
        h = (h ^ h >> 16) * np.uint32(0x7FEB352D)
        h = (h ^ h >> 15) * np.uint32(0x846CA68B)
        return h ^ h >> 16

    def one(value: int) -> np.ndarray:
        return np.array([value & 0xFFFFFFFF], dtype=np.uint32)

    salt_1 = mix(one(salt + 0x9E3779B9))
    salt_2 = mix(salt_1 + one(0x9E3779B9))
    rows = []
    for key in keys.tolist():
        key_1 = mix(one(key) ^ salt_1)
        key_2 = mix(key_1 + (one(key >> 32) ^ salt_2))
        rows.append(mix(mix(np.arange(columns, dtype=np.uint32) ^ key_1) ^ key_2) >= int(p * 2**32))
    return np.stack(rows)


def keys_of(tokens: int, value: int = seed, number: int = 0) -> Tensor:
    """The keys of a sample's tokens."""
    return torch.from_numpy(token_keys(sample_seeds(value, number, 1), [tokens], tokens)).to(DEVICE)


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 4099), (17, 1000), (5, 9000)], ids=str)
def test_dropout_is_the_same_everywhere(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = randn(*shape, dtype=dtype, outliers=True)
    for p, salt in ((0.05, 0), (0.5, 1), (0.9, 2**32 - 1), (1e-12, 77)):
        keys = keys_of(shape[0], seed + salt)
        plain = dropout.dropout_plain(x, p, keys, salt)
        triton = dropout_t.dropout_triton(x, p, keys, salt)
        assert plain.dtype == triton.dtype == dtype
        assert torch.equal(plain.view(torch.uint8),
                           triton.view(torch.uint8)), f"p {p}, salt {salt}, seed {seed}"
        assert torch.equal(plain, dropout.dropout_plain(x, p, keys, salt)), seed
        kept = torch.from_numpy(kept_by_formula(keys, shape[1], p, salt)).to(DEVICE)
        want = torch.where(kept, x.double() / (1 - p), 0)
        check(plain, want, dtype, f"p {p}, salt {salt}")
        assert torch.equal((plain != 0) | (x == 0), kept | (x == 0)), seed


def test_dropout_masks_of_numpy_and_torch_are_one_formula() -> None:
    for p, salt in ((0.05, 0), (0.7, 12345)):
        keys = keys_of(40, seed + salt).cpu()
        want = torch.from_numpy(~kept_by_formula(keys, 999, p, salt))
        assert torch.equal(dropout._numpy_mask(keys, 999, p, salt), want), seed
        assert torch.equal(dropout._torch_mask(keys, 999, p, salt), want), seed
        assert torch.equal(dropout._torch_mask(keys[7:9], 999, p, salt), want[7:9]), seed


def test_dropout_keeps_its_share_and_masks_are_unlike() -> None:
    rows, columns, p = 64, 4096, 0.3
    ones = torch.ones(rows, columns, device=DEVICE)

    def mask(value: int, salt: int, number: int = 0) -> Tensor:
        return (dropout.dropout(ones, p, keys_of(rows, value, number), salt) != 0).double()

    masks = [mask(seed, 3), mask(seed, 4), mask(seed, 3 + 2**31), mask(seed + 1, 3), mask(seed + 2**32, 3),
             mask(seed, 3, 1), mask(seed, 3, 2**32)]
    sigma = (p * (1 - p) / ones.numel()) ** 0.5
    for one in masks:
        assert abs(float(one.mean()) - (1 - p)) < 5 * sigma, seed
    flat = torch.stack([one.view(-1) for one in masks])
    apart = torch.corrcoef(flat) - torch.eye(len(masks), device=DEVICE)
    assert apart.abs().max() < 6 / ones.numel() ** 0.5, seed
    between_rows = torch.corrcoef(masks[0]) - torch.eye(rows, device=DEVICE)
    assert between_rows.abs().max() < 6 / columns**0.5, seed
    for lag in (1, 2, 32, 4096, 65536):
        pair = torch.corrcoef(torch.stack([flat[0, lag:], flat[0, :-lag]]))[0, 1]
        assert abs(pair) < 6 / ones.numel() ** 0.5, (lag, seed)


def test_token_keys_belong_to_the_sample_wherever_it_lies() -> None:
    seeds, lengths = sample_seeds(seed, 7, 3), [5, 1, 9]
    together = token_keys(seeds, lengths, 20)
    assert not together[15:].any(), "padding"
    alone = np.concatenate([token_keys([each], [length], length)
                            for each, length in zip(seeds, lengths, strict=True)])
    assert (together[:15] == alone).all()
    assert (token_keys(seeds[::-1], lengths[::-1], 15)[9:10] == alone[5:6]).all()
    assert (token_keys([seeds[2]], [30], 30)[:9] == alone[6:]).all(), "a longer row begins with the same keys"
    assert len({*together[:15].tolist()}) == 15
    assert sample_seeds(seed, 0, 10)[7:] == seeds, "the number counts, not the call"
    many = {each for number in range(3) for each in sample_seeds(2**63 - 1 - number, 0, 1000)}
    assert len(many) == 3000


def test_dropout_chunks_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(7, 1000)
    whole = dropout.dropout_plain(x, 0.4, keys_of(7), 5)
    monkeypatch.setattr(dropout, "_CHUNK_CPU", 2000)
    monkeypatch.setattr(dropout, "_CHUNK_GPU", 2000)
    assert torch.equal(dropout.dropout_plain(x, 0.4, keys_of(7), 5), whole)


def test_dropout_of_nothing_and_out_of_range() -> None:
    x = randn(3, 5)
    assert dropout.dropout(x, 0.0, keys_of(3), 1) is x
    for p, salt in ((1.0, 0), (-0.1, 0), (0.5, -1), (0.5, 2**32)):
        with pytest.raises(ValueError, match="dropout"):
            dropout.dropout(x, p, keys_of(3), salt)


# ---- cross-entropy

#: A sum of exponentials near 1, and a probability near 1, are no finer than fp32's digits there.
FLOOR = 3e-7


@each_dtype
@pytest.mark.parametrize(("rows", "entries"), [(1, 1), (1, 2), (4, 257), (3, 4096), (5, 9001)])
def test_cross_entropy(dtype: torch.dtype, rows: int, entries: int) -> None:
    logits = randn(rows, entries, dtype=dtype) * 4
    logits[-1] = randn(entries, dtype=dtype, outliers=True)
    targets = torch.randint(entries, (rows,), device=DEVICE)
    if rows > 2:
        targets[1] = -100
        logits[0, (int(targets[0]) + 1) % entries] = float("-inf")  # a masked entry of the vocabulary
    want = F.cross_entropy(logits.double(), targets, reduction="none", ignore_index=-100)
    d_want = grad_of(lambda x: F.cross_entropy(x, targets, reduction="none", ignore_index=-100), logits,
                     torch.ones(rows, device=DEVICE))
    # A logit less the log of the sum is rounded to the logit's digits; exp makes that a relative error.
    slack = 3e-6 + 2.0**-23 * float(logits[logits.isfinite()].abs().max())
    for d_dtype in (None, torch.float32, dtype):
        d_plain = None if d_dtype is None else torch.full((rows, entries), float("nan"), dtype=d_dtype,
                                                          device=DEVICE)
        d_triton = None if d_plain is None else d_plain.clone()
        plain = cross_entropy.cross_entropy_plain(logits, targets, d_plain)
        triton = cross_entropy_t.cross_entropy_triton(logits, targets, d_triton)
        assert plain.dtype == triton.dtype == torch.float32
        check(plain[:, None], want[:, None], torch.float32, "plain", slack=1e-6, floor=FLOOR)
        check(triton[:, None], want[:, None], torch.float32, "triton", slack=1e-6, floor=FLOOR)
        assert not triton[targets == -100].any()
        if d_plain is not None:
            check(d_plain, d_want, d_dtype, "plain gradient", slack=slack, floor=FLOOR)
            check(d_triton, d_want, d_dtype, "triton gradient", slack=slack, floor=FLOOR)
            check(d_triton, d_plain, d_dtype, "triton and plain gradient", slack=slack, halves=2, floor=FLOOR)
            assert not d_triton[targets == -100].any()
    for function in (cross_entropy.cross_entropy_plain, cross_entropy_t.cross_entropy_triton):
        in_place = logits.clone()
        check(function(in_place, targets, in_place)[:, None], want[:, None], torch.float32, "in place",
              slack=1e-6, floor=FLOOR)
        check(in_place, d_want, dtype, "gradient in place", slack=slack, floor=FLOOR)


def test_cross_entropy_rows_are_seamless_and_nan_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = randn(7, 50), torch.randint(50, (7,), device=DEVICE)
    whole = cross_entropy.cross_entropy_plain(logits, targets, None)
    monkeypatch.setattr(cross_entropy, "_CHUNK", 100)
    assert torch.equal(cross_entropy.cross_entropy_plain(logits, targets, None), whole)
    logits[2, (int(targets[2]) + 3) % 50] = float("nan")
    logits[4, 5], targets[4] = float("nan"), -100
    for function in (cross_entropy.cross_entropy_plain, cross_entropy_t.cross_entropy_triton):
        d = torch.empty_like(logits)
        assert function(logits, targets, d).isnan().tolist() == [False, False, True, False, False, False,
                                                                 False], seed
        assert not d[4].any()


# ---- dequantisation


def slice_of_scratch(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scratch, its slice of that shape): 128 elements are left on either side."""
    count = int(np.prod(shape))
    scratch = torch.full((count + 256,), 7.0, dtype=dtype, device=DEVICE)
    return scratch, scratch[128:-128].view(shape)


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (3, 4096), (2, 4097)], ids=str)
def test_int8(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    q = torch.randint(-128, 128, shape, dtype=torch.int8, device=DEVICE)
    size = torch.tensor([1e-3, 10.0], device=DEVICE).repeat(shape[0])[:shape[0]]
    scale = torch.rand(shape[0], device=DEVICE) * size
    want = (q.double() * scale.double()[:, None]).float().to(dtype)
    for function in (dequantize.dequantize_int8_plain, dequantize_t.dequantize_int8_triton):
        scratch, out = slice_of_scratch(shape, dtype)
        assert function(q, scale, out) is out
        check(out, want, dtype, function.__name__, slack=0)
        assert (scratch[:128] == 7).all()
        assert (scratch[-128:] == 7).all()


def nf4_by_formula(packed: Tensor, code: Tensor, absmax: formats.Nf4Absmax, shape: tuple[int, int]) -> Tensor:
    """The format's definition, value by value, in fp64."""
    count = int(np.prod(shape))
    nibbles = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], dim=1).view(-1)[:count].long()
    block = torch.arange(count, device=packed.device) // 64
    scale = (
        absmax.code_256.double()[absmax.q.long()[block]] * absmax.nested.double()[block // 256]
        + absmax.offset.double()
    )
    return (code.double()[nibbles] * scale).view(shape)


def random_nf4(shape: tuple[int, int]) -> tuple[Tensor, Tensor, formats.Nf4Absmax]:
    """Any bytes are a weight."""
    count = int(np.prod(shape))
    blocks = (count + 63) // 64
    absmax = formats.Nf4Absmax(torch.randint(256, (blocks,), dtype=torch.uint8, device=DEVICE), randn(256),
                                  torch.rand((blocks + 255) // 256, device=DEVICE),
                               torch.tensor(3.0, device=DEVICE))
    return torch.randint(256, ((count + 1) // 2, 1), dtype=torch.uint8, device=DEVICE), randn(16), absmax


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 70), (65, 256), (2, 64 * 129 + 1)], ids=str)
def test_nf4(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    packed, code, absmax = random_nf4(shape)
    want = nf4_by_formula(packed, code, absmax, shape)
    for function in (dequantize.dequantize_nf4_plain, dequantize_t.dequantize_nf4_triton):
        scratch, out = slice_of_scratch(shape, dtype)
        assert function(packed, code, absmax, out) is out
        check(out, want, dtype, function.__name__)
        assert (scratch[:128] == 7).all()
        assert (scratch[-128:] == 7).all()


@pytest.mark.parametrize("shape", [(1, 64), (3, 70), (33, 64 * 9), (2, 64 * 129 + 1)], ids=str)
def test_nf4_is_bitsandbytes_own(shape: tuple[int, int]) -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    weight = randn(*shape, outliers=True).cpu()  # it packs the same on CPU as on CUDA
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    theirs = bnb.dequantize_4bit(packed, state)
    assert state.state2.blocksize == 256
    absmax = formats.Nf4Absmax(*(part.to(DEVICE) for part in (
        state.absmax, state.state2.code, state.state2.absmax, state.offset)))
    packed, code = packed.to(DEVICE), state.code.to(DEVICE)
    want = nf4_by_formula(packed, code, absmax, shape)
    for function in (dequantize.dequantize_nf4_plain, dequantize_t.dequantize_nf4_triton):
        out = function(packed, code, absmax, torch.empty(shape, device=DEVICE))
        check(out, want, torch.float32, function.__name__)
        check(out.cpu(), theirs, torch.float32, f"{function.__name__} and bitsandbytes", halves=2)


def test_dequantised_chunks_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (9, 64 * 500 + 3)
    packed, code, absmax = random_nf4(shape)
    q, scale = torch.randint(-128, 128, (9, 40), dtype=torch.int8,
                             device=DEVICE), torch.rand(9, device=DEVICE)
    whole = dequantize.dequantize_nf4_plain(packed, code, absmax, torch.empty(shape, device=DEVICE))
    rows = dequantize.dequantize_int8_plain(q, scale, torch.empty((9, 40), device=DEVICE))
    monkeypatch.setattr(dequantize, "_CHUNK", 64 * 100)
    assert torch.equal(dequantize.dequantize_nf4_plain(packed, code, absmax, torch.empty_like(whole)), whole)
    monkeypatch.setattr(dequantize, "_CHUNK", 80)
    assert torch.equal(dequantize.dequantize_int8_plain(q, scale, torch.empty_like(rows)), rows)


# ---- fp8

has_fp8 = pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9),
                             reason="no fp8")


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@has_fp8
@each_dtype
@pytest.mark.parametrize("C", [1, 15, 16, 100, 4096, 14336, 28672, 40000])
@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_rows(dtype: torch.dtype, C: int, scaled: bool) -> None:
    """Rows that a program holds and rows read twice; zeros, an infinity, the greatest at either end."""
    x = randn(5, C, dtype=dtype)
    x[1], x[2, C // 2] = 0, float("inf")
    x[3, 0], x[4, -1] = -300, 300
    scale = randn(C).abs() + 0.1 if scaled else None
    (plain, plain_s), (triton,
                       triton_s) = fp8.quantise_rows_plain(x, scale), fp8_t.quantise_rows_triton(x, scale)
    assert torch.allclose(plain_s, triton_s, rtol=0 if DEVICE == "cpu" else 3e-7, atol=0), seed
    assert triton_s[1] == 1
    assert triton_s[2].isinf()
    finite = [0, 1, 3, 4]
    differ = plain.view(torch.uint8)[finite] != triton.view(torch.uint8)[finite]
    assert differ.float().mean() <= (0 if DEVICE == "cpu" else 0.02), seed
    check(triton[finite].float(), plain[finite].float(), torch.float32, "rows",
          slack=0 if DEVICE == "cpu" else 2**-3)


@has_fp8
@each_dtype
@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (130, 528)], ids=str)
def test_fp8_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Also one with gaps between its rows, as it lies beside LoRA's B."""
    wide = randn(shape[0], shape[1] + 24, dtype=dtype)
    for w in (wide[:, :shape[1]], wide[:, :shape[1]].clone()):
        scale = (w.abs().amax(1).float() / formats.FP8_LARGEST).clamp_min(1e-12)
        for transposed in (False, True):
            plain, triton = fp8.cast_weight_plain(w, scale,
                                                  transposed), fp8_t.cast_weight_triton(w, scale, transposed)
            assert triton.is_contiguous()
            differ = plain.view(torch.uint8) != triton.view(torch.uint8)
            assert differ.float().mean() <= (0 if DEVICE == "cpu" else 0.02), seed
