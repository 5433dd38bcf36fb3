"""Attention over a packed batch in Triton: one pass forward, two backward, nothing of size N x N kept.

After FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691). Samples stand one after another; a token
sees the keys from `first_key_N` to itself, so blocks of other samples are never read. Scores are in base 2:
exp2 is the GPU's own. Every block is masked: what that costs is less than what a second and third copy of
each loop cost to compile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_LOG2E = 1.4426950408889634


@triton.jit
def _rows(ptr, at, stride, d, N, D: tl.constexpr, BD: tl.constexpr):
    """Load the rows `at` of a [N, D] matrix, zeros outside."""
    mask = at[:, None] < N
    if D != BD:
        mask = mask & (d[None, :] < D)
    return tl.load(ptr + at[:, None].to(tl.int64) * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def _forward_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, first_ptr, slope_ptr, N, scale, q_sn, q_sh, k_sn,
                    k_sh, v_sn, v_sh, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
                    BM: tl.constexpr, BN: tl.constexpr, ALIBI: tl.constexpr, PRECISION: tl.constexpr):
    """Blocks of BM queries; the last ones, which have the most keys, are launched first."""
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    m, d = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    q = _rows(q_ptr + head * q_sh, m, q_sn, d, N, D, BD)
    first = tl.load(first_ptr + m, mask=m < N, other=0)
    begin = tl.load(first_ptr + block * BM) // BN * BN
    slope = 0.0
    if ALIBI:
        slope = tl.load(slope_ptr + head) * 1.4426950408889634
    k_ptr += (head // GROUP) * k_sh
    v_ptr += (head // GROUP) * v_sh
    acc = tl.zeros((BM, BD), tl.float32)
    # Finite, so that a query none of whose keys came yet is scaled by 1 and not by NaN.
    top = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(begin, tl.minimum(block * BM + BM, N), BN):
        n = start + tl.arange(0, BN)
        k = _rows(k_ptr, n, k_sn, d, N, D, BD)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if ALIBI:
            s += slope * (n[None, :] - m[:, None]).to(tl.float32)
        s = tl.where((n[None, :] >= first[:, None]) & (n[None, :] <= m[:, None]), s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = _rows(v_ptr, n, v_sn, d, N, D, BD)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    acc = acc / total[:, None]
    inside = (m[:, None] < N) & (d[None, :] < D)
    tl.store(o_ptr + (m[:, None].to(tl.int64) * heads + head) * D + d[None, :],
             acc.to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + head.to(tl.int64) * N + m, top + tl.log2(total), mask=m < N)


@triton.jit
def _delta_kernel(o_ptr, do_ptr, delta_ptr, N, H, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """delta[h, n] = sum over d of o * do."""
    m, head, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1), tl.arange(0, BD)
    o = _rows(o_ptr + head * D, m, H * D, d, N, D, BD).to(tl.float32)
    do = _rows(do_ptr + head * D, m, H * D, d, N, D, BD).to(tl.float32)
    tl.store(delta_ptr + head.to(tl.int64) * N + m, tl.sum(o * do, 1), mask=m < N)


@triton.jit
def _key_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, last_ptr, slope_ptr, N,
                scale, grad_scale, q_sn, q_sh, k_sn, k_sh, v_sn, v_sh, H, GROUP: tl.constexpr,
                D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ALIBI: tl.constexpr,
                PRECISION: tl.constexpr):
    """Gradients of a block of BN keys and values, from every head of queries that they serve."""
    block, kv_head = tl.program_id(0), tl.program_id(1)
    n, d = block * BN + tl.arange(0, BN), tl.arange(0, BD)
    k = _rows(k_ptr + kv_head * k_sh, n, k_sn, d, N, D, BD)
    v = _rows(v_ptr + kv_head * v_sh, n, v_sn, d, N, D, BD)
    last = tl.load(last_ptr + n, mask=n < N, other=-1)
    begin = block * BN // BM * BM
    blocks = (tl.load(last_ptr + tl.minimum(block * BN + BN, N) - 1) - begin) // BM + 1
    dk = tl.zeros((BN, BD), tl.float32)
    dv = tl.zeros((BN, BD), tl.float32)
    for turn in range(0, blocks * GROUP):
        head = kv_head * GROUP + turn // blocks
        m = begin + turn % blocks * BM + tl.arange(0, BM)
        q = _rows(q_ptr + head * q_sh, m, q_sn, d, N, D, BD)
        do = _rows(do_ptr + head * D, m, H * D, d, N, D, BD)
        lse = tl.load(lse_ptr + head.to(tl.int64) * N + m, mask=m < N, other=0.0)
        delta = tl.load(delta_ptr + head.to(tl.int64) * N + m, mask=m < N, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        if ALIBI:
            s += tl.load(slope_ptr + head) * 1.4426950408889634 * (n[:, None] - m[None, :]).to(tl.float32)
        seen = (m[None, :] >= n[:, None]) & (m[None, :] <= last[:, None])
        p = tl.where(seen, tl.exp2(s - lse[None, :]), 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    inside = (n[:, None] < N) & (d[None, :] < D)
    k_at = kv_head * k_sh + n[:, None].to(tl.int64) * k_sn + d[None, :]
    v_at = kv_head * v_sh + n[:, None].to(tl.int64) * v_sn + d[None, :]
    tl.store(dk_ptr + k_at, (dk * grad_scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + v_at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _query_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, first_ptr, slope_ptr, N, scale,
                  grad_scale, q_sn, q_sh, k_sn, k_sh, v_sn, v_sh, GROUP: tl.constexpr, D: tl.constexpr,
                  BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ALIBI: tl.constexpr,
                  PRECISION: tl.constexpr):
    """Gradient of a block of BM queries."""
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    m, d = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    q = _rows(q_ptr + head * q_sh, m, q_sn, d, N, D, BD)
    do = _rows(do_ptr + head * D, m, heads * D, d, N, D, BD)
    lse = tl.load(lse_ptr + head.to(tl.int64) * N + m, mask=m < N, other=0.0)
    delta = tl.load(delta_ptr + head.to(tl.int64) * N + m, mask=m < N, other=0.0)
    first = tl.load(first_ptr + m, mask=m < N, other=0)
    begin = tl.load(first_ptr + block * BM) // BN * BN
    slope = 0.0
    if ALIBI:
        slope = tl.load(slope_ptr + head) * 1.4426950408889634
    k_ptr += (head // GROUP) * k_sh
    v_ptr += (head // GROUP) * v_sh
    dq = tl.zeros((BM, BD), tl.float32)
    for start in range(begin, tl.minimum(block * BM + BM, N), BN):
        n = start + tl.arange(0, BN)
        k = _rows(k_ptr, n, k_sn, d, N, D, BD)
        v = _rows(v_ptr, n, v_sn, d, N, D, BD)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if ALIBI:
            s += slope * (n[None, :] - m[:, None]).to(tl.float32)
        seen = (n[None, :] >= first[:, None]) & (n[None, :] <= m[:, None])
        p = tl.where(seen, tl.exp2(s - lse[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    inside = (m[:, None] < N) & (d[None, :] < D)
    q_at = head * q_sh + m[:, None].to(tl.int64) * q_sn + d[None, :]
    tl.store(dq_ptr + q_at, (dq * grad_scale).to(dq_ptr.dtype.element_ty), mask=inside)


def _launch(q_NHD: torch.Tensor, k_NHD: torch.Tensor, slopes_H: torch.Tensor | None) -> dict[str, Any]:
    """What all kernels are compiled with: blocks that fit the shared memory for this head size and dtype."""
    heads, width = q_NHD.shape[1:]
    padded = max(16, triton.next_power_of_2(width))
    row_bytes = padded * q_NHD.element_size()
    blocks, stages = (((64, 64), 3) if row_bytes <= 256
                      else ((32, 32), 2) if row_bytes <= 512 else ((16, 16), 1))
    return {"GROUP": heads // k_NHD.shape[1], "D": width, "BD": padded, "ALIBI": slopes_H is not None,
            "BM": blocks[0], "BN": blocks[1], "PRECISION": "ieee" if q_NHD.dtype == torch.float32 else "tf32",
            "num_warps": 4, "num_stages": stages}


def attention_forward_triton(q_NHD: torch.Tensor, k_NHD: torch.Tensor, v_NHD: torch.Tensor,
                             first_key_N: torch.Tensor, slopes_H: torch.Tensor | None,
                             scale: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(output [N, H, D], log2 of the sum of exponentials [H, N] fp32). k and v may have fewer heads.

    scale: of q k^T; None for 1 / sqrt(D).
    """
    scale = q_NHD.shape[2] ** -0.5 if scale is None else scale
    N, heads, width = q_NHD.shape
    launch = _launch(q_NHD, k_NHD, slopes_H)
    o_NHD = torch.empty((N, heads, width), dtype=q_NHD.dtype, device=q_NHD.device)
    lse_HN = torch.empty((heads, N), dtype=torch.float32, device=q_NHD.device)
    with torch.cuda.device_of(q_NHD):
        _forward_kernel[(triton.cdiv(N, launch["BM"]), heads)](
            q_NHD, k_NHD, v_NHD, o_NHD, lse_HN, first_key_N, slopes_H, N, scale * _LOG2E, *q_NHD.stride()[:2],
            *k_NHD.stride()[:2], *v_NHD.stride()[:2], **launch)
    return o_NHD, lse_HN


def attention_backward_triton(do_NHD: torch.Tensor, q_NHD: torch.Tensor, k_NHD: torch.Tensor,
                              v_NHD: torch.Tensor, o_NHD: torch.Tensor, lse_HN: torch.Tensor,
                              first_key_N: torch.Tensor, last_query_N: torch.Tensor,
                              slopes_H: torch.Tensor | None, dq_NHD: torch.Tensor, dk_NHD: torch.Tensor,
                              dv_NHD: torch.Tensor, scale: float | None = None) -> None:
    """Fill dq, dk and dv, which have the strides of q, k and v. do and o are contiguous."""
    N, heads, width = q_NHD.shape
    launch = _launch(q_NHD, k_NHD, slopes_H)
    launch["num_stages"] = max(1, launch["num_stages"] - 1)  # four blocks stream by here, not two
    strides = (*q_NHD.stride()[:2], *k_NHD.stride()[:2], *v_NHD.stride()[:2])
    scale = width ** -0.5 if scale is None else scale
    delta_HN = torch.empty_like(lse_HN)
    with torch.cuda.device_of(q_NHD):
        _delta_kernel[(triton.cdiv(N, 64), heads)](o_NHD, do_NHD, delta_HN, N, heads, D=width,
                                                   BD=launch["BD"], BM=64)
        _key_kernel[(triton.cdiv(N, launch["BN"]), k_NHD.shape[1])](
            q_NHD, k_NHD, v_NHD, do_NHD, lse_HN, delta_HN, dk_NHD, dv_NHD, last_query_N, slopes_H, N,
            scale * _LOG2E, scale, *strides, heads, **launch)
        _query_kernel[(triton.cdiv(N, launch["BM"]), heads)](
            q_NHD, k_NHD, v_NHD, do_NHD, lse_HN, delta_HN, dq_NHD, first_key_N, slopes_H, N, scale * _LOG2E,
            scale, *strides, **launch)
