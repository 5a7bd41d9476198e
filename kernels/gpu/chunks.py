"""The state in which each chunk of time starts, so that programs can take the chunks independently.

Time is divided into chunks where sequences and channels are too few to fill the device. As in
published parallel scans there are three passes, each a launch of its own:

    summarize   `_scan_summarize_kernel`: the steps of each chunk as one map (see `clamped_affine`)
    propagate   `_scan_propagate_kernel`: the maps applied in turn, which gives every chunk's start
    scan        the kernels of `scan`: the steps of each chunk from its start

The input is read twice, with one chunk once. The result does not depend on which program runs when,
and is exact up to rounding. Conventions as in `scan`.
"""

import triton
import triton.language as tl

from .clamped_affine import (
    append,
    apply,
    at_bound,
    constant_where,
    finish,
    growing_above,
    identity,
    inverse_in_two_parts,
)
from .indexing import (
    as_multiple,
    channel_mask,
    load_group,
    load_resets,
    load_rows,
    program_coordinates,
    row_pointers,
    sequence_extent,
    steps_per_chunk,
)


@triton.jit
def _append_steps(
    P, Q, E0, E1, extra, u, lo, hi, grows, inverse, p_pointers, h_pointers, resets_pointers, i,
    offs_n, N, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The segment (P, Q, E0, E1) followed by steps i to i + ROWS. `extra` is added to the first
    one's p. grows: where P and Q hold S and R; None: nowhere."""
    resets = load_resets(resets_pointers, i, ROWS, ROWS)
    rows = load_group(p_pointers, i, offs_n, N, ROWS, STAGES)
    if h_pointers is not None:
        h_rows = load_group(h_pointers, i, offs_n, N, ROWS, STAGES)
    for r in tl.static_range(ROWS):
        p = rows[r].to(u.dtype)
        if h_pointers is None:
            if resets_pointers is not None:
                P, Q, E0, E1 = constant_where((resets >> r) & 1 != 0, 0.0, P, Q, E0, E1)
            P, Q, E0, E1 = append(p, u, P, Q, E0, E1, lo, hi, grows, inverse)
        else:
            if r == 0:
                p += extra
            P, Q, E0, E1 = append(p, u, P, Q, E0, E1, lo, hi, grows, inverse)
            blocked = at_bound(h_rows[r].to(u.dtype), LO, HI)
            if resets_pointers is not None:
                blocked |= (resets >> r) & 1 != 0
            P, Q, E0, E1 = constant_where(blocked, 0.0, P, Q, E0, E1)
    return P, Q, E0, E1


@triton.jit
def _summarize_chunk(
    chunk, state, extra, u, lo, hi, grows, p_pointers, h_pointers, resets_pointers, start, stop,
    offs_n, N, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Steps start to stop as one segment (P, Q, E0, E1), as `apply` takes it.

    Chunk 0 becomes a constant map: it starts in `state`, with `extra` added to its first p.
    """
    inverse = None
    if grows is not None:
        inverse = inverse_in_two_parts(u)
    P, Q, E0, E1 = identity(u, lo, hi, grows)
    P, Q, E0, E1 = constant_where(chunk == 0, state, P, Q, E0, E1)
    whole = start + (stop - start) // ROWS * ROWS
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        P, Q, E0, E1 = _append_steps(
            P, Q, E0, E1, extra, u, lo, hi, grows, inverse, p_pointers, h_pointers,
            resets_pointers, i, offs_n, N, LO, HI, ROWS, STAGES,
        )  # fmt: skip
        extra = tl.zeros_like(extra)
    return finish(P, Q, E0, E1, u, (stop - start) % 2 == 1, lo, hi, grows)


@triton.jit(do_not_specialize=["T"])
def _scan_summarize_kernel(
    p_ptr,  # [B, T, N], a; in the backward the gradient of h
    h_ptr,  # [B, T, N], the stored output; None in the forward
    u_ptr,  # [N]
    given_ptr,  # [B, N], h0; in the backward the gradient of h_n; or None
    map_ptr,  # [B, CHUNKS, 4, N]: P, Q, E0, E1 of each chunk but the last
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None
    resets_ptr,  # [B, T] or None
    clip,  # c rounded to float32, or None
    clip_rest,  # what the rounding left, or None
    T,
    N,
    stride_pb,
    stride_pt,
    stride_hb,
    stride_ht,
    stride_rb,  # of resets
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,  # steps of a group, whose rows are loaded together
    STAGES: tl.constexpr,  # STAGES - 1 groups are copied ahead; 1: rows in registers instead
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of p and h
):
    """F_c = f_stop o ... o f_start: the steps of chunk c as one map of the state before it.

    A step is f_t(s) = clamp(a_t + u*s, LO, HI); in the backward, where the state is d, it is f_t(d)
    = clamp(m_t * (g_t + u*d), -c, c). Chunk 0, whose start is known, becomes a constant map. No
    other chunk follows the last one, so the grid is (B * blocks of channels, CHUNKS - 1). Nor does
    a step follow the chunk in which a sequence ends, so its map may be wrong: of its steps, those
    after the last whole group of ROWS are left out. Saves four numbers a chunk and channel, float32
    or float64. Floor: a, or g and h, read once; for each element of relu's forward 4
    multiplications and 2 maxima, of a recurrence without bounds 2 multiplications. Source: the
    composition in `clamped_affine`.
    """
    b, chunk, first_row, length, start, stop, _end, offs_n = program_coordinates(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    ragged_N = None if EVEN_N else as_multiple(N, VECTOR)
    mask = channel_mask(offs_n, ragged_N, True)
    ACC: tl.constexpr = tl.float64 if p_ptr.dtype.element_ty == tl.float64 else tl.float32
    zeros = tl.zeros([BLOCK_N], ACC)
    u = tl.load(u_ptr + offs_n, mask=mask, other=0.0).to(ACC)
    given = zeros
    if given_ptr is not None:
        arrives = channel_mask(offs_n, ragged_N, chunk == 0)
        given = tl.load(given_ptr + b * N + offs_n, mask=arrives, other=0.0).to(ACC)
    p_pointers = row_pointers(p_ptr, b, first_row, length, stride_pb, stride_pt, REVERSE, VECTOR)
    resets_pointers = row_pointers(resets_ptr, b, first_row, length, stride_rb, stride_rt, REVERSE)
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
    h_pointers = row_pointers(h_ptr, b, first_row, length, stride_hb, stride_ht, REVERSE, VECTOR)

    # The loop for growing segments does more, and mostly no u of a program needs it.
    grows = tl.abs(u) > growing_above(stop - start, ACC)
    if tl.max(grows.to(tl.int32), 0) == 0:
        P, Q, E0, E1 = _summarize_chunk(
            chunk, state, extra, u, lo, hi, None, p_pointers, h_pointers, resets_pointers, start,
            stop, offs_n, ragged_N, LO, HI, ROWS, STAGES,
        )  # fmt: skip
    else:
        P, Q, E0, E1 = _summarize_chunk(
            chunk, state, extra, u, lo, hi, grows, p_pointers, h_pointers, resets_pointers, start,
            stop, offs_n, ragged_N, LO, HI, ROWS, STAGES,
        )  # fmt: skip

    map_ptrs = map_ptr + (b * CHUNKS + chunk) * 4 * N + offs_n
    tl.store(map_ptrs, P, mask=mask)
    tl.store(map_ptrs + N, Q, mask=mask)
    tl.store(map_ptrs + 2 * N, E0, mask=mask)
    tl.store(map_ptrs + 3 * N, E1, mask=mask)


@triton.jit
def _propagate_chunks(
    s, maps, stride, start_ptrs, grows, offs_n, N,
    BOUNDED: tl.constexpr, CHUNKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Stores the state in which each chunk of a sequence starts; s is that of chunk 0.

    maps: pointer to the map of chunk 0, [4, N]. stride: from one chunk's map to the next one's.
    """
    for c in range(0, CHUNKS, GROUP):
        left = CHUNKS - 1 - c
        P = load_rows((maps, stride), c, offs_n, N, left, GROUP)
        Q = load_rows((maps + N, stride), c, offs_n, N, left, GROUP)
        E0, E1 = P, P
        if BOUNDED:
            E0 = load_rows((maps + 2 * N, stride), c, offs_n, N, left, GROUP)
            E1 = load_rows((maps + 3 * N, stride), c, offs_n, N, left, GROUP)
        for r in tl.static_range(GROUP):
            tl.store(start_ptrs, s, mask=channel_mask(offs_n, N, c + r < CHUNKS))
            start_ptrs += N
            s = apply(P[r], Q[r], E0[r], E1[r], s, BOUNDED, grows)


@triton.jit(do_not_specialize=["T"])
def _scan_propagate_kernel(
    map_ptr,  # [B, CHUNKS, 4, N]: P, Q, E0, E1 of each chunk but the last
    u_ptr,  # [N]
    first_ptr,  # [B, N], the state in which chunk 0 starts, or None for zeros
    start_ptr,  # [B, CHUNKS, N]
    cu_seqlens_ptr,  # [B + 1] or None
    T,
    N,
    BOUNDED: tl.constexpr,  # whether a step has a bound
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,  # of the kernels that take the chunks, which are whole groups of rows
    GROUP: tl.constexpr,  # chunks whose maps are loaded together
    BLOCK_N: tl.constexpr,
):
    """start_0 given, start_{c+1} = F_c(start_c): the state in which each chunk starts.

    In the backward the state is d. Grid: (B * blocks of channels,). Reads the maps [B, CHUNKS, 4,
    N] of `_scan_summarize_kernel`. Floor: 4 numbers a chunk and channel read, 2 without bounds, and
    1 written; these are so few that the time is the latency of CHUNKS maps in turn.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    offs_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < N
    s = tl.zeros([BLOCK_N], start_ptr.dtype.element_ty)
    if first_ptr is not None:
        s = tl.load(first_ptr + b * N + offs_n, mask=mask).to(s.dtype)
    u = tl.load(u_ptr + offs_n, mask=mask, other=0.0).to(s.dtype)
    _first_row, padded_length, _length = sequence_extent(b, T, None, cu_seqlens_ptr)
    # As in `_scan_summarize_kernel`: a chunk whose map is used has all of its steps.
    grows = tl.abs(u) > growing_above(steps_per_chunk(padded_length, CHUNKS, ROWS), s.dtype)
    stride = b * 0 + 4 * N
    maps = map_ptr + b * CHUNKS * stride
    start_ptrs = start_ptr + b * CHUNKS * N + offs_n
    if tl.max(grows.to(tl.int32), 0) == 0:
        _propagate_chunks(s, maps, stride, start_ptrs, None, offs_n, N, BOUNDED, CHUNKS, GROUP)
    else:
        _propagate_chunks(s, maps, stride, start_ptrs, grows, offs_n, N, BOUNDED, CHUNKS, GROUP)
