"""int8 products: Triton kernels against twin and fp64, `Int8Products` against LLM.int8, on fresh inputs.

Without a GPU the kernels run in Triton's interpreter, which must be asked for before they are imported.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import numpy as np

from tunesmith.model.native.eight_bit import Fp8Weight
from tunesmith.model.native.int8_products import CALIBRATION_PASSES, THRESHOLD, Int8Products, fits_int8
from tunesmith.model.native.kernels import int8_matmul as plain
from tunesmith.model.native.kernels import int8_matmul_triton as kernels
from tunesmith.model.native.weights import DenseWeight, FrozenWeight, QuantisedWeight, StackedWeight
from tunesmith.model.quantization import WAYS

Tensor = torch.Tensor
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TMA = DEVICE == "cpu" or torch.cuda.get_device_capability() >= (9, 0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
#: Half a unit in the last place of a result that is rounded once, with what fp32 arithmetic loses before.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11 + 2e-6}
seed = 0


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    """Each test draws inputs of its own; the seed is in what a failing assert says."""
    global seed
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def bf16_is_rounded_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy has no bf16, and Triton's interpreter truncates where a GPU rounds to even; torch rounds."""
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source.name, target.name) != ("fp32", "bf16"):
            return theirs(data, source, target, mode)
        return torch.tensor(data).bfloat16().view(torch.uint16).numpy()

    dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar.name != "bf16":
            return handle
        values = torch.tensor(handle.data.view(np.int16)).view(torch.bfloat16).float().numpy()
        return interpreter.TensorHandle(values, interpreter.tl.float32)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    # It would multiply the bits of bf16 as integers.
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot",
                        lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def rand_int8(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8).to(DEVICE)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.isfinite().all(), f"not finite, seed {seed}"
    return float((got.double() - want.double()).norm() / want.double().norm())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


# ---- rounding


@each_dtype
@pytest.mark.parametrize("shape", [(1, 16), (5, 96), (3, 257), (2, 4128)], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_quantise_rows(dtype: torch.dtype, shape: tuple[int, int], scaled: bool, drops: bool) -> None:
    x = randn(*shape, dtype=dtype)
    x[0] = 0
    scale = randn(shape[1]).abs() if scaled else None
    dropped = None
    if drops:
        dropped = torch.zeros(shape[1], dtype=torch.bool, device=DEVICE)
        dropped[torch.randint(shape[1], (3,))] = True
        x[:, dropped] *= 1000
    want = x.double() * (1 if scale is None else scale.double())
    if dropped is not None:
        want[:, dropped] = 0
    largest = want.abs().amax(1)
    want_s = torch.where(largest > 0, largest / 127, 1.0)
    found = {"plain": plain.quantise_rows_int8_plain(x, scale, dropped),
             "triton": kernels.quantise_rows_int8_triton(x, scale, dropped)}
    for name, (q, s) in found.items():
        assert q.dtype == torch.int8
        assert s.dtype == torch.float32
        assert s.shape == shape[:1]
        assert q.abs().max() <= 127
        assert torch.allclose(s.double(), want_s, rtol=1e-6, atol=0), (name, seed)
        away = (want / want_s[:, None] - q.double()).abs().max()
        assert away <= 0.5 + 1e-4, f"{name}: {float(away)} from the nearest, seed {seed}"
    # A GPU divides to within a last place.
    assert torch.allclose(found["plain"][1], found["triton"][1], rtol=2e-7, atol=0), seed
    # Halves may fall either way where the reciprocal of the scale is a last place off.
    differ = found["plain"][0].int() - found["triton"][0].int()
    assert differ.abs().max() <= 1, seed
    # a row of ties may fall either way
    assert (differ != 0).float().mean() <= (0.02 if DEVICE == "cpu" else 0.1), seed


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@each_dtype
@pytest.mark.parametrize("C", [1, 15, 16, 100, 4096, 5000, 14336, 28672, 32769, 40000])
def test_rows_held_whole_and_rows_read_twice(dtype: torch.dtype, C: int) -> None:
    """One row each: ordinary, zeros, tiny, NaN, infinite, with both dropped, the greatest at either end."""
    x = randn(8, C, dtype=dtype)
    dropped = torch.rand(C, device=DEVICE) < 0.1
    dropped[C // 2] = True
    x[1], x[2] = 0, x[2] * (1e-35 if dtype == torch.bfloat16 else 1e-7)
    x[3, -1], x[4, 0] = float("nan"), float("-inf")
    x[5, dropped] = float("nan")
    x[6, 0], x[7, -1] = -300, 300
    scale = randn(C).abs() + 0.1
    for scale_C in (None, scale):
        for dropped_C in (None, dropped):
            (q, s), (want_q, want_s) = (rows(x, scale_C, dropped_C) for rows in (
                kernels.quantise_rows_int8_triton, plain.quantise_rows_int8_plain))
            assert torch.equal(s.isnan(), want_s.isnan()), seed
            finite = ~s.isnan()
            assert torch.allclose(s[finite], want_s[finite], rtol=0 if DEVICE == "cpu" else 2e-7,
                                  atol=0), seed
            differ = (q[finite].int() - want_q[finite].int()).abs()
            assert differ.max() <= (DEVICE == "cuda"), seed
            # a row of ties may fall either way
            assert (differ != 0).float().mean() <= (0.02 if DEVICE == "cpu" else 0.1), seed
            if dropped_C is not None:
                assert (q[finite][:, dropped] == 0).all(), seed
                assert finite[5], seed
    assert s[1] == 1


def test_rows_leave_their_neighbours_alone() -> None:
    """The last block of a row reaches beyond it: what is there belongs to the next row, or to nobody."""
    for C in (15, 40000):
        x = randn(3, C)
        x[1] *= 1e6
        q, s = kernels.quantise_rows_int8_triton(x)
        for i in range(3):
            alone_q, alone_s = kernels.quantise_rows_int8_triton(x[i:i + 1].clone())
            assert torch.equal(q[i:i + 1], alone_q), seed
            assert torch.equal(s[i:i + 1], alone_s), seed


def test_halves_go_to_the_even_number() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], device=DEVICE)
    for rows in (plain.quantise_rows_int8_plain, kernels.quantise_rows_int8_triton):
        assert rows(x, None, None)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_vanish(strange: float) -> None:
    x = randn(3, 48)
    x[1, 7] = strange
    for rows in (plain.quantise_rows_int8_plain, kernels.quantise_rows_int8_triton):
        assert rows(x, None, None)[1].isnan().tolist() == [False, True, False], seed


def test_mask_may_be_bytes_and_gaps_are_refused() -> None:
    x = randn(3, 32)
    mask = torch.arange(32, device=DEVICE) % 5 == 0
    for rows in (plain.quantise_rows_int8_plain, kernels.quantise_rows_int8_triton):
        for a, b in zip(rows(x, None, mask), rows(x, None, mask.to(torch.uint8)), strict=True):
            assert torch.equal(a, b), seed
    with pytest.raises(ValueError, match="contiguous"):
        kernels.quantise_rows_int8_triton(x.T)


@each_dtype
@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (130, 528)], ids=str)
def test_round_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    w = randn(*shape, dtype=dtype)
    scale = (w.abs().amax(1).float() / 127)
    exact = w.double() / scale.double()[:, None]
    for transposed in (False, True):
        a = plain.quantise_weight_int8_plain(w, scale, transposed)
        b = kernels.quantise_weight_int8_triton(w, scale, transposed)
        for q in (a, b):
            assert q.is_contiguous()
            assert ((q.T if transposed else q).double() - exact).abs().max() <= 0.5 + 1e-4, seed
        assert (a.int() - b.int()).abs().max() <= 1, seed
        assert (a != b).float().mean() <= 0.02, seed
    too_small = kernels.quantise_weight_int8_triton(w, scale / 2, False)
    assert too_small.abs().max() <= 127
    expected = plain.quantise_weight_int8_plain(w, scale / 2, False)
    assert (too_small.int() - expected.int()).abs().max() <= 1, seed


@each_dtype
@pytest.mark.parametrize("gap", [1, 8, 48])
def test_weight_with_gaps_between_its_rows(dtype: torch.dtype, gap: int) -> None:
    """As a weight lies beside LoRA's B."""
    wide = randn(48, 80 + gap, dtype=dtype) * 100
    w, scale = wide[:, :80], randn(48).abs() + 1
    q = rand_int8(48, 80 + gap)
    for transposed in (False, True):
        for rounded in (plain.quantise_weight_int8_plain, kernels.quantise_weight_int8_triton):
            assert torch.equal(rounded(w, scale, transposed), rounded(w.clone(), scale, transposed)), seed
    assert torch.equal(kernels.quantise_weight_int8_triton(q[:, :80], None, True), q[:, :80].T), seed
    with pytest.raises(ValueError, match="contiguous"):
        kernels.quantise_weight_int8_triton(w.T, None, True)


@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (130, 528)], ids=str)
def test_transpose(shape: tuple[int, int]) -> None:
    q = rand_int8(*shape)
    for t in (plain.transpose_int8(q), kernels.quantise_weight_int8_triton(q, None, True)):
        assert t.is_contiguous()
        assert torch.equal(t, q.T), seed


# ---- the product

SMALL = kernels.Tile(16, 32, 32, 4, 2)
PRODUCTS = [(1, 16, 16), (16, 32, 32), (17, 48, 33), (100, 160, 70), (40, 64, 136)]


@each_dtype
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("tma",
                         [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_TMA, reason="no TMA"))])
def test_product(dtype: torch.dtype, shape: tuple[int, int, int], tma: bool) -> None:
    N, K, M = shape
    a, b = rand_int8(N, K), rand_int8(M, K)
    s_n = randn(N).abs() / 1000 / K  # so that fp16 holds the results
    tile = kernels.Tile(64, 32, 32, 4, 2) if DEVICE == "cuda" else SMALL
    for s_m, bias in ((None, None), (randn(M).abs(), None), (randn(M), randn(M, dtype=dtype)),
                      (None, randn(M))):
        want = (a.double() @ b.double().T) * s_n.double()[:, None] * (1 if s_m is None else s_m.double())
        spread = want.abs() + (0 if bias is None else bias.double().abs())  # the sum may cancel
        want = want if bias is None else want + bias.double()
        for name, y in (("plain", plain.int8_product_plain(a, s_n, b, s_m, bias, dtype)),
                        ("triton", kernels.launch_product(a, s_n, b, s_m, bias, dtype, tile, tma=tma))):
            assert y.dtype == dtype
            excess = (y.double() - want).abs() - (ROUNDING[dtype] * want.abs() + 1e-6 * spread + 1e-7)
            assert excess.max() <= 0, f"{name}: {float(excess.max())} too far off, seed {seed}"


@pytest.mark.parametrize("tile", [kernels.WIDE, kernels.SQUARE, kernels.BY_POINTER],
                         ids=["wide", "square", "pointer"])
def test_tiles_in_use(tile: kernels.Tile) -> None:
    """Sizes that no tile divides."""
    tma = tile != kernels.BY_POINTER
    if DEVICE == "cuda" and tma and kernels._limits(torch.cuda.current_device())[1] < tile.shared_bytes:
        pytest.skip("does not fit this GPU")
    if tma and not HAS_TMA:
        pytest.skip("no TMA")
    a, b, s_n, s_m, bias = rand_int8(139, 272), rand_int8(389,
                                                          272), randn(139).abs(), randn(389).abs(), randn(389)
    got = kernels.launch_product(a, s_n, b, s_m, bias, torch.float32, tile, tma=tma)
    want = plain.int8_product_plain(a, s_n, b, s_m, bias, torch.float32)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-2), seed
    if DEVICE == "cuda":
        assert torch.allclose(plain.int8_product(a, s_n, b, s_m, bias, torch.float32), want, rtol=1e-5,
                              atol=1e-2), seed


LOW_SHAPES = [(1, 16, 1, 1), (17, 48, 33, 8), (16, 32, 32, 16), (39, 64, 71, 24), (5, 16, 130, 48),
              (33, 32, 31, 64), (40, 64, 136, 80), (3, 16, 5, 129)]


def low_rank(N: int, M: int, R: int, dtype: torch.dtype, flipped: bool) -> tuple[Tensor, Tensor]:
    """(xa [N, R], b [M, R]) of ones' size; flipped: b is a transposed view."""
    b = randn(R, M, dtype=dtype).T if flipped else randn(M, R, dtype=dtype)
    return randn(N, R, dtype=dtype), b


@each_dtype
@pytest.mark.parametrize("shape", LOW_SHAPES, ids=str)
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("tma",
                         [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_TMA, reason="no TMA"))])
def test_low_rank_part(dtype: torch.dtype, shape: tuple[int, int, int, int], flipped: bool,
                       tma: bool) -> None:
    """Before the one rounding, with and without a bias and a scale, and sums that cancel."""
    N, K, M, R = shape
    a, b = rand_int8(N, K), rand_int8(M, K)
    s_n = randn(N).abs() / 1000 / K
    tile = kernels.Tile(64, 32, 32, 4, 2) if DEVICE == "cuda" else SMALL
    xa, lora_b = low_rank(N, M, R, dtype, flipped)
    part, size = xa.double() @ lora_b.double().T, xa.double().abs() @ lora_b.double().abs().T
    for s_m, bias in ((None, None), (randn(M).abs(), None), (randn(M), randn(M, dtype=dtype)),
                      (None, (-part[0]).to(dtype))):
        large = (a.double() @ b.double().T) * s_n.double()[:, None] * (1 if s_m is None else s_m.double())
        plus = torch.zeros(M, device=DEVICE).double() if bias is None else bias.double()
        want, spread = large + part + plus, large.abs() + size + plus.abs()
        for name, y in (("plain", plain.int8_product_plain(a, s_n, b, s_m, bias, dtype, xa, lora_b)),
                        ("triton",
                         kernels.launch_product(a, s_n, b, s_m, bias, dtype, tile, xa, lora_b, tma=tma))):
            assert y.dtype == dtype
            excess = (y.double() - want).abs() - (ROUNDING[dtype] * want.abs() + 4e-6 * spread + 1e-7)
            assert excess.max() <= 0, f"{name}: {float(excess.max())} too far off, seed {seed}"


@each_dtype
@pytest.mark.parametrize("tile", [kernels.WIDE, kernels.SQUARE, kernels.BY_POINTER],
                         ids=["wide", "square", "pointer"])
def test_low_rank_part_in_the_tiles_in_use(dtype: torch.dtype, tile: kernels.Tile) -> None:
    tma = tile != kernels.BY_POINTER
    if tma and not HAS_TMA:
        pytest.skip("no TMA")
    if DEVICE == "cuda" and tma and kernels._limits(torch.cuda.current_device())[1] < tile.shared_bytes:
        pytest.skip("does not fit this GPU")
    a, b, s_n, s_m = rand_int8(139, 272), rand_int8(389,
                                                    272), randn(139).abs() / 1000, randn(389).abs() / 1000
    for R, flipped in ((16, False), (48, True), (80, False), (200, True)):
        xa, lora_b = low_rank(139, 389, R, dtype, flipped)
        got = kernels.launch_product(a, s_n, b, s_m, None, dtype, tile, xa, lora_b, tma=tma)
        want = plain.int8_product_plain(a, s_n, b, s_m, None, torch.float32, xa, lora_b)
        assert relative(got, want) <= ROUNDING[dtype], f"{relative(got, want)}, R {R}, seed {seed}"


@each_dtype
def test_a_low_rank_part_of_zeros_adds_nothing(dtype: torch.dtype) -> None:
    a, b, s_n, bias = rand_int8(20, 32), rand_int8(40, 32), randn(20) / 1000, randn(40, dtype=dtype)
    xa, lora_b = low_rank(20, 40, 24, dtype, False)
    for product in (plain.int8_product_plain, kernels.int8_product_triton):
        want = product(a, s_n, b, None, bias, dtype)
        for zeros in ((xa * 0, lora_b), (xa, lora_b * 0),
                      (xa[:, :0].contiguous(), lora_b[:, :0].contiguous())):
            assert torch.equal(product(a, s_n, b, None, bias, dtype, *zeros), want), seed


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_not_finite_in_the_low_rank_part_shows(strange: float) -> None:
    """In its row or column, and nowhere else."""
    a, b, s_n = rand_int8(20, 32), rand_int8(40, 32), randn(20) / 1000
    for at_xa in (True, False):
        xa, lora_b = low_rank(20, 40, 24, torch.float16, False)
        (xa if at_xa else lora_b)[7, 5] = strange
        for product in (plain.int8_product_plain, kernels.int8_product_triton):
            bad = ~product(a, s_n, b, None, None, torch.float16, xa, lora_b).isfinite()
            assert (bad[7] if at_xa else bad[:, 7]).all(), seed
            assert bad.sum() == (40 if at_xa else 20), seed


def test_low_rank_parts_that_do_not_fit_are_refused() -> None:
    a, b, s_n = rand_int8(4, 16), rand_int8(6, 16), randn(4)
    xa, lora_b = randn(4, 8), randn(6, 8)
    for pair in ((xa, None), (None, lora_b), (xa[:3], lora_b), (xa, lora_b[:5]), (xa[:, :7], lora_b),
                 (xa.half(), lora_b)):
        with pytest.raises(ValueError, match="low-rank part"):
            plain.int8_product(a, s_n, b, None, None, torch.float32, *pair)
    for pair in ((randn(8, 4).T, lora_b), (xa, randn(12, 8)[::2]), (xa, randn(6, 16)[:, :8])):
        with pytest.raises(ValueError, match="contiguous"):
            kernels.int8_product_triton(a, s_n, b, None, None, torch.float32, *pair)


def test_product_is_exact_beyond_what_fp32_counts() -> None:
    K = 2048
    a, b = torch.full((2, K), 127, dtype=torch.int8,
                      device=DEVICE), torch.full((16, K), 127, dtype=torch.int8, device=DEVICE)
    b[:, 0] = 126
    one = torch.ones(2, device=DEVICE)
    want = torch.tensor(float(K * 127 * 127 - 127))
    for y in (plain.int8_product_plain(a, one, b, None, None, torch.float32),
              kernels.int8_product_triton(a, one, b, None, None, torch.float32)):
        assert (y.cpu() == want).all()


def test_plain_product_where_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Tensor:
        raise RuntimeError

    a, b, s = rand_int8(3, 32), rand_int8(16, 32), randn(3)
    with_library = plain.int8_product_plain(a, s, b, None, None, torch.float32)
    monkeypatch.setattr(torch, "_int_mm", refuses)
    assert torch.equal(plain.int8_product_plain(a, s, b, None, None, torch.float32), with_library), seed


def test_product_refuses_widths_that_do_not_fit() -> None:
    for a, b in ((rand_int8(2, 24), rand_int8(16, 24)), (rand_int8(2, 32), rand_int8(16, 16))):
        with pytest.raises(ValueError, match="multiple of 16"):
            plain.int8_product(a, randn(2), b, None, None, torch.float32)


def test_tiles_are_chosen_by_size() -> None:
    h100 = (132, 232448)
    assert kernels.tile_for(8192, 28672, *h100) == kernels.WIDE
    assert kernels.tile_for(1024, 4096, *h100) == kernels.WIDE
    assert kernels.tile_for(512, 4096, *h100) == kernels.SQUARE
    assert kernels.tile_for(8192, 28672, 132, 166912) == kernels.SQUARE
    assert kernels.tile_for(8192, 28672, 132, 101376) is None
    assert kernels.takes_tma(torch.zeros(4, 32, dtype=torch.int8))
    assert not kernels.takes_tma(torch.zeros(4, 24, dtype=torch.int8))
    assert not kernels.takes_tma(torch.zeros(129, dtype=torch.int8)[1:].view(4, 32))


# ---- Int8Products


def int8_weight(outputs: int, inputs: int, dtype: torch.dtype) -> QuantisedWeight:
    """In bitsandbytes' format."""
    w = torch.randn(outputs, inputs) * inputs**-0.5
    scale = w.abs().amax(1) / 127
    parts = {"q": (w / scale[:, None]).round().to(torch.int8).to(DEVICE), "scale": scale.to(DEVICE)}
    return QuantisedWeight(WAYS["int8"], parts, outputs, inputs, dtype)


def planted(tokens: int, inputs: int, columns: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Normal activations within the threshold, and a few columns of great ones."""
    x = torch.randn(tokens, inputs).clamp(-5, 5)
    x[:, columns] = (x[:, columns].abs() + 0.5) * x[:, columns].sign() * factors
    return x.to(DEVICE, dtype)


def settled(exact: FrozenWeight, batches: list[Tensor]) -> Int8Products:
    products = Int8Products(exact)
    for x in batches:
        products.project(x, None)
    products.settle()
    return products


def llm_int8(x: Tensor, weight: QuantisedWeight, bias: Tensor | None) -> Tensor:
    """Dettmers et al. 2022, eq. 8, the batch's outliers multiplied in x's dtype; as bitsandbytes rounds."""
    outlier = (x.abs() > THRESHOLD).any(0)
    rest = x.double().masked_fill(outlier, 0)
    scale = rest.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    y = ((rest / scale).round() @ weight.parts["q"].double().T * scale * weight.parts["scale"].double()).to(
        x.dtype
    )
    w = (weight.parts["q"].double() * weight.parts["scale"].double()[:, None]).to(x.dtype)
    y = y.addmm(x[:, outlier], w[:, outlier].T)  # with whatever roundings the device's product has
    return y if bias is None else y + bias


@each_dtype
@pytest.mark.parametrize("biased", [False, True])
def test_no_worse_than_llm_int8_on_planted_columns(dtype: torch.dtype, biased: bool) -> None:
    inputs, outputs, count = 256, 160, 5
    columns, factors = torch.randperm(inputs)[:count], torch.rand(count) * 950 + 50
    if dtype == torch.float16:
        factors = factors.clamp_max(500)  # fp16 ends at 65504
    weight = int8_weight(outputs, inputs, dtype)
    bias = randn(outputs, dtype=dtype) if biased else None
    products = settled(weight,
                       [planted(32, inputs, columns, factors, dtype) for _ in range(CALIBRATION_PASSES)])
    assert set(columns.tolist()) <= set(products.columns.tolist()), seed
    x = planted(64, inputs, columns, factors, dtype)
    want = x.double() @ (weight.parts["q"].double() * weight.parts["scale"].double()[:, None]).T + (
        0 if bias is None else bias.double()
    )
    ours, theirs = relative(products.project(x, bias), want), relative(llm_int8(x, weight, bias), want)
    assert ours <= 1.1 * theirs, f"{ours} and {theirs}, seed {seed}"
    # What the planted columns hide: the same with their part taken off.
    if dtype == torch.float32:
        part = x.double()[:, columns] @ weight.dense().double()[:, columns].T
        rest = relative(products.project(x, bias).double() - part, want - part)
        assert rest <= 1.1 * relative(llm_int8(x, weight, bias).double() - part, want - part), seed
        assert rest < 0.02, seed


@each_dtype
@pytest.mark.parametrize("kind", ["int8", "dense", "stacked"])
def test_backward_points_where_the_exact_one_does(dtype: torch.dtype, kind: str) -> None:
    inputs, outputs = 192, 320
    if kind == "int8":
        exact: FrozenWeight = int8_weight(outputs, inputs, dtype)
    elif kind == "dense":
        exact = DenseWeight(randn(outputs, inputs, dtype=dtype))
    else:
        exact = StackedWeight([int8_weight(64, inputs, dtype),
                               DenseWeight(randn(outputs - 64, inputs, dtype=dtype) / 8)])
    products = settled(exact,
                       [planted(16, inputs, torch.tensor([3, 70]), torch.tensor([60.0, 900.0]), dtype)])
    dy = randn(40, outputs, dtype=dtype) * 1e-4
    want = dy.double() @ exact.dense().double()
    got = products.project_back(dy)
    assert got.dtype == dtype
    assert cosine(got, want) > 0.999, seed
    x = randn(40, inputs, dtype=dtype)
    assert cosine(products.project(x, None), x.double() @ exact.dense().double().T) > 0.999, seed


@each_dtype
def test_lora_s_part_and_the_bias_come_along(dtype: torch.dtype) -> None:
    exact = int8_weight(64, 96, dtype)
    products = settled(exact, [randn(8, 96, dtype=dtype)])
    x, xa, b, bias, a = (randn(*shape, dtype=dtype) for shape in ((8, 96), (8, 4), (64, 4), (64,), (4, 96)))
    want = products.project(x, None).double() + xa.double() @ b.double().T + bias.double()
    assert relative(products.project(x, bias, xa, b), want) < 0.01, seed
    dy = randn(8, 64, dtype=dtype)
    assert relative(products.project_back(dy, xa, a),
                    products.project_back(dy).double() + xa.double() @ a.double()) < 0.01, seed


def separately(products: Int8Products, x: Tensor, bias: Tensor | None, xa: Tensor,
               b: Tensor) -> list[Tensor]:
    """Forward as passes of their own over the result, each with a rounding: after each of them."""
    q, s = plain.quantise_rows_int8(x, None, products.dropped_I)
    passes = [plain.int8_product(q, s, products._quantised_weight(False), products.scale, bias,
                                 products.dtype)]
    if products.w_outlier is not None:
        passes.append(passes[-1].addmm(x[:, products.columns], products.w_outlier.T))
    return [*passes, passes[-1].addmm(xa, b.T)]


@each_dtype
@pytest.mark.parametrize("outliers", [0, 3, 40])
@pytest.mark.parametrize("kernel", [False, True], ids=["chosen", "triton"])
def test_one_pass_is_what_several_were(dtype: torch.dtype, outliers: int, kernel: bool,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA and the columns kept apart in the product: within the roundings saved, near the exact result."""
    if kernel:
        monkeypatch.setattr(plain, "use_triton", lambda _: True)
    inputs, outputs, R = 96, 160, 24
    exact = int8_weight(outputs, inputs, dtype)
    columns, factors = torch.randperm(inputs)[:outliers], torch.rand(outliers) * 100 + 20
    products = settled(exact, [planted(8, inputs, columns, factors, dtype)])
    x, dy, bias = planted(12, inputs, columns, factors,
                          dtype), randn(12, outputs, dtype=dtype), randn(outputs, dtype=dtype)
    a, xa = randn(R, inputs, dtype=dtype), randn(12, R, dtype=dtype)
    b = randn(outputs, inputs + R, dtype=dtype)[:, inputs:]  # as it lies beside a dense weight

    got, passes = products.project(x, bias, xa, b), separately(products, x, bias, xa, b)
    size = sum(y.double().abs() for y in (got, *passes))
    size_xa = xa.double().abs() @ b.double().abs().T + x.double().abs() @ exact.dense().double().abs().T
    assert (
        (got.double() - passes[-1].double()).abs() - ROUNDING[dtype] * size - 1e-5 * size_xa
    ).max() <= 0, seed
    assert relative(got, exact.project(x, bias, xa, b)) < 0.02, seed

    got, rest = products.project_back(dy, xa, a), products.project_back(dy)
    want = rest.addmm(xa, a)
    size = sum(y.double().abs() for y in (got, rest, want))
    size_xa = xa.double().abs() @ a.double().abs()
    assert ((got.double() - want.double()).abs() - ROUNDING[dtype] * size - 1e-5 * size_xa).max() <= 0, seed
    assert relative(got, exact.project_back(dy, xa, a)) < 0.02, seed


def test_a_weight_beside_lora_s_b_is_rounded_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "use_triton", lambda _: True)
    wide = randn(48, 64 + 16)
    exact, strided = DenseWeight(wide[:, :64].clone()), DenseWeight(wide[:, :64])
    x, dy = randn(5, 64), randn(5, 48)
    one, other = settled(exact, [x]), settled(strided, [x])
    assert not one.can_concat
    assert torch.equal(one.project(x, None), other.project(x, None)), seed
    assert torch.equal(one.project_back(dy), other.project_back(dy)), seed


def test_what_fp8_multiplies_exactly_may_still_be_one_product() -> None:
    """Only its backward pass is in 8 bits, so [W b] is the exact weight's."""
    exact, b = DenseWeight(randn(48, 64)), randn(48, 8)
    rounded = Fp8Weight(exact)
    assert rounded.can_concat
    assert torch.equal(rounded.concat_b(b), torch.cat([exact.weight, b], dim=1)), seed


def test_calibration_is_exact_and_watches_every_pass() -> None:
    exact = int8_weight(32, 64, torch.float32)
    products = Int8Products(exact)
    dy, bias = randn(5, 32), randn(32)
    largest = torch.zeros(64, device=DEVICE)
    for i in range(CALIBRATION_PASSES):
        assert not products.calibrated
        x = randn(7, 64) * (10 if i == 2 else 1)
        assert torch.equal(products.project(x, bias), exact.project(x, bias)), seed
        assert torch.equal(products.project_back(dy), exact.project_back(dy)), seed
        largest = largest.maximum(x.abs().amax(0))
    assert products.calibrated
    assert torch.equal(products.largest_I, largest), seed


def test_calibration_picks_the_planted_columns() -> None:
    columns, factors = torch.randperm(256)[:9].sort().values, torch.rand(9) * 950 + 50
    exact = int8_weight(48, 256, torch.float32)
    products = settled(exact, [planted(8, 256, columns, factors, torch.float32) for _ in range(4)])
    assert len(products.columns) == 16
    assert products.columns.dtype == torch.int64
    # The other seven are the next greatest.
    assert set(products.columns.tolist()) == set(products.largest_I.topk(16).indices.tolist()), seed
    assert set(columns.tolist()) <= set(products.columns.tolist()), seed
    assert torch.equal(products.w_outlier, exact.dense()[:, products.columns]), seed
    assert products.dropped_I.nonzero().flatten().tolist() == products.columns.tolist(), seed


@pytest.mark.parametrize(("outliers", "kept"), [(0, 0), (1, 16), (16, 16), (17, 32), (128, 128), (150, 128)])
def test_how_many_columns_are_kept_apart(outliers: int, kept: int) -> None:
    columns, factors = torch.randperm(192)[:outliers], torch.rand(outliers) * 950 + 50
    exact = int8_weight(16, 192, torch.float32)
    products = settled(exact, [planted(8, 192, columns, factors, torch.float32)])
    assert len(products.columns) == kept, seed
    assert (products.w_outlier is None) == (kept == 0)
    if outliers > kept:
        smallest = products.largest_I[products.columns].min()
        assert (products.largest_I > smallest).sum() < kept, seed
    x = planted(8, 192, columns[:0], factors[:0], torch.float32)
    assert cosine(products.project(x, None), exact.project(x, None)) > 0.999, seed


def test_nothing_changes_once_it_is_settled() -> None:
    columns = torch.tensor([5, 40])
    exact = int8_weight(32, 64, torch.float32)
    products = settled(exact, [planted(8, 64, columns, torch.tensor([80.0, 300.0]), torch.float32)])
    x = planted(8, 64, columns, torch.tensor([80.0, 300.0]), torch.float32)
    first, state = products.project(x,
                                    None), {name: buffer.clone() for name, buffer in products.named_buffers()}
    passes = products.passes
    for _ in range(3):
        products.project(randn(8, 64) * 1e4, None)
        products.project_back(randn(8, 32))
        products.settle()
    assert products.passes == passes
    assert set(state) == {name for name, _ in products.named_buffers()}
    assert all(torch.equal(buffer, state[name]) for name, buffer in products.named_buffers()), seed
    assert torch.equal(products.project(x, None), first), seed


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs need a GPU")
def test_both_directions_can_be_captured() -> None:
    columns, factors = torch.tensor([5, 40]), torch.tensor([80.0, 300.0])
    products = settled(int8_weight(512, 256, torch.bfloat16),
                       [planted(8, 256, columns, factors, torch.bfloat16)])
    x, dy = planted(128, 256, columns, factors, torch.bfloat16), randn(128, 512, dtype=torch.bfloat16)
    want = products.project(x, None), products.project_back(dy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = products.project(x, None), products.project_back(dy)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), seed


def test_which_weights_fit() -> None:
    assert fits_int8(DenseWeight(torch.zeros(32, 48)))
    assert not fits_int8(DenseWeight(torch.zeros(33, 48)))
    assert not fits_int8(DenseWeight(torch.zeros(32, 40)))
