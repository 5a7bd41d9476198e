"""Chunks of time made independent: each is folded into one map, and the maps are chained.

For sequences and channels too few to fill the device. The kernels of `scan` then walk every chunk
from its true start: one more read of the input, deterministic, exact up to rounding. Conventions as
in `scan`; the maps are those of `clamped_affine`.
"""

import triton
import triton.language as tl

from .clamped_affine import (
    append,
    apply,
    constant,
    finish,
    growth_limit,
    identity,
    inverse_of,
    stopped,
)
from .indexing import (
    extent,
    load_group,
    load_resets,
    load_rows,
    multiple,
    program,
    steps_of_chunk,
    walk_rows,
    within,
)


@triton.jit
def _fold_rows(
    P, Q, E0, E1, extra, u, lo, hi, grows, inverse, p_walk, h_walk, resets_walk, i, offs_n, edge,
    LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The run (P, Q, E0, E1) followed by steps i to i + ROWS, the first of which gets `extra` too.

    grows: where P and Q are S and R; None: nowhere.
    """
    resets = load_resets(resets_walk, i, ROWS, ROWS)
    rows = load_group(p_walk, i, offs_n, edge, ROWS, STAGES)
    if h_walk is not None:
        h_rows = load_group(h_walk, i, offs_n, edge, ROWS, STAGES)
    for r in tl.static_range(ROWS):
        p = rows[r].to(u.dtype)
        if h_walk is None:
            if resets_walk is not None:
                P, Q, E0, E1 = constant((resets >> r) & 1 != 0, 0.0, P, Q, E0, E1)
            P, Q, E0, E1 = append(p, u, P, Q, E0, E1, lo, hi, grows, inverse)
        else:
            if r == 0:
                p += extra
            P, Q, E0, E1 = append(p, u, P, Q, E0, E1, lo, hi, grows, inverse)
            killed = stopped(h_rows[r].to(u.dtype), LO, HI)
            if resets_walk is not None:
                killed |= (resets >> r) & 1 != 0
            P, Q, E0, E1 = constant(killed, 0.0, P, Q, E0, E1)
    return P, Q, E0, E1


@triton.jit
def _fold_chunk(
    chunk, state, extra, u, lo, hi, grows, p_walk, h_walk, resets_walk, start, stop, offs_n, edge,
    LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Steps start to stop as one map, ready for `apply`."""
    inverse = None
    if grows is not None:
        inverse = inverse_of(u)
    P, Q, E0, E1 = identity(u, lo, hi, grows)
    P, Q, E0, E1 = constant(chunk == 0, state, P, Q, E0, E1)
    whole = start + (stop - start) // ROWS * ROWS
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        P, Q, E0, E1 = _fold_rows(
            P, Q, E0, E1, extra, u, lo, hi, grows, inverse, p_walk, h_walk, resets_walk, i,
            offs_n, edge, LO, HI, ROWS, STAGES,
        )  # fmt: skip
        extra = tl.zeros_like(extra)
    return finish(P, Q, E0, E1, u, (stop - start) % 2 == 1, lo, hi, grows)


@triton.jit(do_not_specialize=["T"])
def _scan_fold_kernel(
    p_ptr,  # [B, T, N], a; in the backward the gradient of h
    h_ptr,  # [B, T, N], the stored output; None in the forward
    u_ptr,  # [N]
    given_ptr,  # [B, N], h0; in the backward the gradient of h_n; or None
    map_ptr,  # [B, CHUNKS, 4, N]: P, Q, E0, E1 of each chunk
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None
    resets_ptr,  # [B, T] or None
    clip,  # c and the rest of c, or None
    clip_rest,
    T,
    N,
    stride_pb,
    stride_pt,
    stride_hb,
    stride_ht,
    stride_rb,
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,  # as in `_scan_fwd_kernel`
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of a row
):
    """Each chunk as one map from the state before it to the state after it; chunk 0 as a constant.

    Of no use for the last chunk and for one that its sequence does not fill: no step follows these.
    Floor: a, or g and h, read once; for each element of relu's forward 4 multiplications and 3
    comparisons, of a recurrence without bounds 2 multiplications.
    """
    b, chunk, first, length, start, stop, _end, offs_n = program(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    edge = None if EVEN_N else multiple(N, VECTOR)
    mask = within(offs_n, edge, True)
    ACC: tl.constexpr = tl.float64 if p_ptr.dtype.element_ty == tl.float64 else tl.float32
    zeros = tl.zeros([BLOCK_N], ACC)
    u = tl.load(u_ptr + offs_n, mask=mask, other=0.0).to(ACC)
    given = zeros
    if given_ptr is not None:
        arrives = within(offs_n, edge, chunk == 0)
        given = tl.load(given_ptr + b * N + offs_n, mask=arrives, other=0.0).to(ACC)
    p_walk = walk_rows(p_ptr, b, first, length, stride_pb, stride_pt, REVERSE, VECTOR)
    h_walk = None
    resets_walk = None
    if resets_ptr is not None:
        resets_walk = walk_rows(resets_ptr, b, first, length, stride_rb, stride_rt, REVERSE)
    state, extra = given, zeros
    lo = LO
    hi = HI
    if h_ptr is not None:
        state, extra = zeros, given
        lo = None
        hi = None
        if clip is not None:
            hi = tl.cast(clip, ACC) + clip_rest  # as in `_scan_bwd_kernel`
            lo = -hi
        h_walk = walk_rows(h_ptr, b, first, length, stride_hb, stride_ht, REVERSE, VECTOR)

    grows = tl.abs(u) > growth_limit(stop - start, ACC)
    if tl.max(grows.to(tl.int32), 0) == 0:
        P, Q, E0, E1 = _fold_chunk(
            chunk, state, extra, u, lo, hi, None, p_walk, h_walk, resets_walk, start, stop, offs_n,
            edge, LO, HI, ROWS, STAGES,
        )  # fmt: skip
    else:
        P, Q, E0, E1 = _fold_chunk(
            chunk, state, extra, u, lo, hi, grows, p_walk, h_walk, resets_walk, start, stop, offs_n,
            edge, LO, HI, ROWS, STAGES,
        )  # fmt: skip

    map_ptrs = map_ptr + (b * CHUNKS + chunk) * 4 * N + offs_n
    tl.store(map_ptrs, P, mask=mask)
    tl.store(map_ptrs + N, Q, mask=mask)
    tl.store(map_ptrs + 2 * N, E0, mask=mask)
    tl.store(map_ptrs + 3 * N, E1, mask=mask)


@triton.jit
def _carry_chunks(
    s, maps, stride, start_ptrs, grows, offs_n, N,
    BOUNDED: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Stores the state in which each chunk starts: s, and what the maps make of it in turn."""
    for c in range(0, CHUNKS, ROWS):
        folded = CHUNKS - 1 - c
        P = load_rows((maps, stride), c, offs_n, N, folded, ROWS)
        Q = load_rows((maps + N, stride), c, offs_n, N, folded, ROWS)
        E0, E1 = P, P
        if BOUNDED:
            E0 = load_rows((maps + 2 * N, stride), c, offs_n, N, folded, ROWS)
            E1 = load_rows((maps + 3 * N, stride), c, offs_n, N, folded, ROWS)
        for r in tl.static_range(ROWS):
            tl.store(start_ptrs, s, mask=within(offs_n, N, c + r < CHUNKS))
            start_ptrs += N
            s = apply(P[r], Q[r], E0[r], E1[r], s, BOUNDED, grows)


@triton.jit(do_not_specialize=["T"])
def _scan_carry_kernel(
    map_ptr,  # [B, CHUNKS, 4, N]: P, Q, E0, E1 of each chunk
    u_ptr,  # [N]
    first_ptr,  # [B, N], the state in which chunk 0 starts, or None for zeros
    start_ptr,  # [B, CHUNKS, N]
    cu_seqlens_ptr,  # [B + 1] or None
    T,
    N,
    BOUNDED: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS_OF_SCAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The state in which each chunk starts: s_0 given, s_{c+1} = F_c(s_c).

    Per chunk and channel 4 numbers read, without bounds 2, and 1 written: a matter of latency.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    offs_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < N
    s = tl.zeros([BLOCK_N], start_ptr.dtype.element_ty)
    if first_ptr is not None:
        s = tl.load(first_ptr + b * N + offs_n, mask=mask).to(s.dtype)
    u = tl.load(u_ptr + offs_n, mask=mask, other=0.0).to(s.dtype)
    _first, padded = extent(b, T, cu_seqlens_ptr)
    # The same channels grow as in `_scan_fold_kernel`, for which a map has this number of steps.
    grows = tl.abs(u) > growth_limit(steps_of_chunk(padded, CHUNKS, ROWS_OF_SCAN), s.dtype)
    stride = b * 0 + 4 * N
    maps = map_ptr + b * CHUNKS * stride
    start_ptrs = start_ptr + b * CHUNKS * N + offs_n
    if tl.max(grows.to(tl.int32), 0) == 0:
        _carry_chunks(s, maps, stride, start_ptrs, None, offs_n, N, BOUNDED, CHUNKS, ROWS)
    else:
        _carry_chunks(s, maps, stride, start_ptrs, grows, offs_n, N, BOUNDED, CHUNKS, ROWS)
