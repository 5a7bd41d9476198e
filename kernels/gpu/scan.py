"""The diagonal recurrence along time, forward and backward.

    forward   h_t = clamp(a_t + u * h_{t-1}, lo, hi)             or tanh
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)      m_t read off the stored h_t

Li et al. 2018, arXiv 1803.04831, eq. 4; the clip on every message is Lasagne's grad_clipping.

A program is one warp and owns one sequence, BLOCK_N channels and one of CHUNKS ranges of time,
which it walks step by step. A step is two operations an element, so what counts is bytes in flight:
groups of ROWS time rows are copied asynchronously into a ring in shared memory, STAGES - 1 of them,
while an earlier one is used; or, where the device cannot do that, ROWS rows are loaded into
registers before the first is used. h may be a, and grad_a grad_h: every row is read before it is
written, and the ring reads rows of later steps only.

Where sequences and channels are too few to fill the device, `chunks` finds the state in which each
chunk starts, and the same kernels walk them all.

Steps are counted along the walk: step i is time i, or length-1-i where REVERSE; the backward walks
against the forward. Offsets are 64 bits wide; strides count elements; channels are adjacent. T is
the padded length. With cu_seqlens [B + 1], sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1],
batch strides are 0, and T is the number of rows. Times past a sequence's length are never read, and
written 0. State and sums are float32, for float64 inputs float64.
"""

import triton
import triton.language as tl

from .clamped_affine import step, stopped
from .indexing import (
    load_group,
    load_resets,
    load_rows,
    multiple,
    program,
    walk_rows,
    within,
    zero_rows,
)


@triton.jit
def _fwd_rows(
    s, u, rows, resets, h_walk, i, offs_n, N, left,
    LO: tl.constexpr, HI: tl.constexpr, TANH: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """The steps from i whose rows are given, of which `left` exist, from state s."""
    h_ptrs = h_walk[0] + i * h_walk[1] + offs_n
    for r in tl.static_range(len(rows)):
        previous = s
        if HAS_RESETS:
            previous = tl.where((resets >> r) & 1 != 0, 0.0, s)
        h = step(rows[r].to(s.dtype), u, previous, LO, HI, TANH)
        tl.store(h_ptrs, h, mask=within(offs_n, N, r < left))
        h_ptrs += h_walk[1]
        s = tl.where(r < left, h, s)
    return s


@triton.jit(do_not_specialize=["T"])
def _scan_fwd_kernel(
    a_ptr,  # [B, T, N]
    u_ptr,  # [N]
    start_ptr,  # [B, CHUNKS, N], the state in which each chunk starts; None: zeros
    h_ptr,  # [B, T, N], may be a_ptr
    h_n_ptr,  # [B, N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None
    resets_ptr,  # [B, T] or None
    T,
    N,
    stride_ab,
    stride_at,
    stride_hb,
    stride_ht,
    stride_rb,
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    TANH: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,  # of the ring of asynchronous copies; 1: rows in registers instead
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of a row
):
    """h_t = clamp(a_t + u * h_{t-1}, LO, HI), and h_n, the state after the last step.

    Where resets, h_{t-1} counts as 0. Saves h alone. Floor: a read and h written once, 2*B*T*N
    elements; for each a multiply-add and a maximum, and two conversions where a is narrow.
    """
    b, chunk, first, length, start, stop, end, offs_n = program(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    edge = None if EVEN_N else multiple(N, VECTOR)
    mask = within(offs_n, edge, True)
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    u = tl.load(u_ptr + offs_n, mask=mask).to(ACC)
    s = tl.zeros([BLOCK_N], ACC)
    if start_ptr is not None:
        s = tl.load(start_ptr + (b * CHUNKS + chunk) * N + offs_n, mask=mask).to(ACC)
    a_walk = walk_rows(a_ptr, b, first, length, stride_ab, stride_at, REVERSE, VECTOR)
    h_walk = walk_rows(h_ptr, b, first, length, stride_hb, stride_ht, REVERSE, VECTOR)
    resets_walk = None
    if resets_ptr is not None:
        resets_walk = walk_rows(resets_ptr, b, first, length, stride_rb, stride_rt, REVERSE)

    HAS_RESETS: tl.constexpr = resets_ptr is not None
    TAIL: tl.constexpr = min(ROWS, 8)
    whole = start + (stop - start) // ROWS * ROWS
    every = tl.full([], ROWS, tl.int64)  # a constant: the masks of whole groups compile to nothing
    resets = load_resets(resets_walk, start, stop - start, ROWS)
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        next_resets = load_resets(resets_walk, i + ROWS, stop - i - ROWS, ROWS)
        rows = load_group(a_walk, i, offs_n, edge, ROWS, STAGES)
        s = _fwd_rows(
            s, u, rows, resets, h_walk, i, offs_n, edge, every, LO, HI, TANH, HAS_RESETS
        )  # fmt: skip
        resets = next_resets
    for i in range(whole, stop, TAIL):
        rows = load_rows(a_walk, i, offs_n, edge, stop - i, TAIL)
        s = _fwd_rows(
            s, u, rows, resets, h_walk, i, offs_n, edge, stop - i, LO, HI, TANH, HAS_RESETS
        )  # fmt: skip
        resets >>= TAIL

    last = (stop == length) & ((start < length) | (chunk == 0))
    tl.store(h_n_ptr + b * N + offs_n, s, mask=within(offs_n, edge, last))
    if lengths_ptr is not None:
        zero_rows(h_ptr, b, length, start, end, offs_n, edge, stride_hb, stride_ht)


@triton.jit
def _bwd_rows(
    d, grad_u, grad_b, h, extra, u, h0, lo, hi,
    g_rows, h_rows, resets, d_walk, i, offs_n, N, left,
    LO: tl.constexpr, HI: tl.constexpr, TANH: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """The steps from i whose rows are given, of which `left` exist before the sequence's end, from
    message d.

    h is the stored output of step i, h_rows those of the steps after each. `extra` is a gradient
    that step i alone receives beside g.
    """
    d_ptrs = d_walk[0] + i * d_walk[1] + offs_n
    for r in tl.static_range(len(g_rows)):
        g = g_rows[r].to(d.dtype)
        if r == 0:
            g += extra
        if TANH:
            slope = 1.0 - h * h
            new = step(slope * g, slope * u, d, lo, hi)
        else:
            new = tl.where(stopped(h, LO, HI), 0.0, step(g, u, d, lo, hi))
        tl.store(d_ptrs, new, mask=within(offs_n, N, r < left))
        d_ptrs += d_walk[1]
        grad_b = tl.where(r < left, grad_b + new, grad_b)
        h = tl.where(r == left - 1, h0, h_rows[r].to(d.dtype))
        product = new * h
        if HAS_RESETS:
            reset = (resets >> r) & 1 != 0
            product = tl.where(reset, 0.0, product)
            new = tl.where(reset, 0.0, new)
        grad_u = tl.where(r < left, grad_u + product, grad_u)
        d = tl.where(r < left, new, d)
    return d, grad_u, grad_b, h


@triton.jit(do_not_specialize=["T"])
def _scan_bwd_kernel(
    g_ptr,  # [B, T, N], gradient of h
    g_n_ptr,  # [B, N], gradient of h_n, or None
    h_ptr,  # [B, T, N], the stored output
    u_ptr,  # [N]
    h0_ptr,  # [B, N] or None
    start_ptr,  # [B, CHUNKS, N], the message with which each chunk starts; None: zeros
    d_ptr,  # [B, T, N], gradient of a
    sums_ptr,  # [2, B, CHUNKS, N], this program's shares of the gradients of u and b
    grad_h0_ptr,  # [B, N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None
    resets_ptr,  # [B, T] or None
    clip,  # c and the rest of c, or None
    clip_rest,
    T,
    N,
    stride_gb,
    stride_gt,
    stride_hb,
    stride_ht,
    stride_db,
    stride_dt,
    stride_rb,
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    TANH: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,  # of the ring of asynchronous copies; 1: rows in registers instead
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of a row
):
    """d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c); grad_u = sum d_t * h_{t-1}; grad_b = sum d_t;
    grad_h0 = u * d_1.

    m_t = 0 where h_t is at a bound, else 1 (tanh: 1 - h_t^2). The gradient of h_n arrives with g_T.
    A step with a reset sends no message on and adds nothing to grad_u. Floor: g and h read and d
    written once, 3*B*T*N elements; for each two multiply-adds, an addition, a comparison and a
    selection, and with a clip a minimum and a maximum.
    """
    b, chunk, first, length, start, stop, end, offs_n = program(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    edge = None if EVEN_N else multiple(N, VECTOR)
    mask = within(offs_n, edge, True)
    ACC: tl.constexpr = tl.float64 if g_ptr.dtype.element_ty == tl.float64 else tl.float32
    zeros = tl.zeros([BLOCK_N], ACC)
    u = tl.load(u_ptr + offs_n, mask=mask).to(ACC)
    h0 = zeros
    if h0_ptr is not None:
        h0 = tl.load(h0_ptr + b * N + offs_n, mask=mask).to(ACC)
    d = zeros
    if start_ptr is not None:
        d = tl.load(start_ptr + (b * CHUNKS + chunk) * N + offs_n, mask=mask).to(ACC)
    g_n = zeros
    if g_n_ptr is not None:
        arrives = within(offs_n, edge, chunk == 0)
        g_n = tl.load(g_n_ptr + b * N + offs_n, mask=arrives, other=0.0).to(ACC)
    g_walk = walk_rows(g_ptr, b, first, length, stride_gb, stride_gt, REVERSE, VECTOR)
    h_walk = walk_rows(h_ptr, b, first, length, stride_hb, stride_ht, REVERSE, VECTOR)
    d_walk = walk_rows(d_ptr, b, first, length, stride_db, stride_dt, REVERSE, VECTOR)
    resets_walk = None
    if resets_ptr is not None:
        resets_walk = walk_rows(resets_ptr, b, first, length, stride_rb, stride_rt, REVERSE)
    lo = None
    hi = None
    if clip is not None:
        # A launch argument is float32; float64 needs the rest of the number.
        hi = tl.cast(clip, ACC) + clip_rest
        lo = -hi

    extra = g_n
    grad_u = zeros
    grad_b = zeros
    h = load_rows(h_walk, start, offs_n, edge, stop - start, 1)[0].to(ACC)
    HAS_RESETS: tl.constexpr = resets_ptr is not None
    TAIL: tl.constexpr = min(ROWS, 8)
    # Whole groups are followed by a further step, whose h they load.
    whole = start + tl.maximum(tl.minimum(stop, length - 1) - start, 0) // ROWS * ROWS
    more = tl.full([], ROWS + 1, tl.int64)
    resets = load_resets(resets_walk, start, stop - start, ROWS)
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        next_resets = load_resets(resets_walk, i + ROWS, stop - i - ROWS, ROWS)
        g_rows = load_group(g_walk, i, offs_n, edge, ROWS, STAGES)
        h_rows = load_group(h_walk, i + 1, offs_n, edge, ROWS, STAGES)
        d, grad_u, grad_b, h = _bwd_rows(
            d, grad_u, grad_b, h, extra, u, h0, lo, hi, g_rows, h_rows, resets, d_walk,
            i, offs_n, edge, more, LO, HI, TANH, HAS_RESETS,
        )  # fmt: skip
        extra = zeros
        resets = next_resets
    for i in range(whole, stop, TAIL):
        g_rows = load_rows(g_walk, i, offs_n, edge, stop - i, TAIL)
        h_rows = load_rows(h_walk, i + 1, offs_n, edge, stop - i - 1, TAIL)
        d, grad_u, grad_b, h = _bwd_rows(
            d, grad_u, grad_b, h, extra, u, h0, lo, hi, g_rows, h_rows, resets, d_walk,
            i, offs_n, edge, stop - i, LO, HI, TANH, HAS_RESETS,
        )  # fmt: skip
        extra = zeros
        resets >>= TAIL

    sums = sums_ptr + (b * CHUNKS + chunk) * N + offs_n
    tl.store(sums, grad_u, mask=mask)
    # N is a plain number where it is 1.
    sums += (tl.num_programs(0) // tl.cdiv(N, BLOCK_N)).to(tl.int64) * CHUNKS * N
    tl.store(sums, grad_b, mask=mask)
    last = (stop == length) & ((start < length) | (chunk == 0))
    grad_h0 = tl.where(length == 0, g_n, u * d)
    tl.store(grad_h0_ptr + b * N + offs_n, grad_h0, mask=within(offs_n, edge, last))
    if lengths_ptr is not None:
        zero_rows(d_ptr, b, length, start, end, offs_n, edge, stride_db, stride_dt)
