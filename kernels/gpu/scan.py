"""The diagonal recurrence along time, forward and backward, for any number of sequences.

    forward   h_t = clamp(a_t + u * h_{t-1}, lo, hi)             or tanh
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)      m_t from the stored h_t

a: [B, T, N], the projected input. u: [N]. h: [B, T, N]; the state before the first step is h0
[B, N]. g_t: the gradient with respect to h_t that arrives from outside of the recurrence. d_t: the
gradient with respect to a_t. Source: Li et al. 2018, arXiv 1803.04831, eq. 4; the clip at every
step is Lasagne's grad_clipping.

A program is one warp. It takes one sequence, BLOCK_N channels and one of CHUNKS chunks of time,
step after step. A step is two operations an element, so speed depends on how many bytes are being
loaded at a time. Steps are taken in groups of ROWS: the rows of a later group are copied
asynchronously to a ring of STAGES - 1 groups in shared memory, while an earlier one is used; or,
where the device cannot do that (STAGES = 1), ROWS rows are loaded into registers before the first
of them is used. h may be a, and grad_a may be grad_h: a row is read before it is written, and the
ring reads rows of later steps only.

With several chunks, `chunks` first computes the state in which each of them starts.

Conventions of all kernels. Steps are counted in the order in which a kernel takes them: step i of
the forward is time i, or length-1-i if REVERSE. The backward takes the steps in the opposite order,
and its launch gives it the opposite REVERSE. stride_at is the stride of a along t, in elements; the
stride along channels is 1; offsets are 64 bits wide. T is the padded length. With cu_seqlens [B +
1] the tensors are [rows, N], sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1], strides along b
are 0, and T is the number of rows. Times past a sequence's length are not read; to their rows 0 is
written. State and sums are float32, for float64 inputs float64.
"""

import triton
import triton.language as tl

from .clamped_affine import at_bound, step
from .indexing import (
    as_multiple,
    channel_mask,
    load_group,
    load_resets,
    load_rows,
    program_coordinates,
    row_pointers,
    zero_padding,
)


@triton.jit
def _forward_steps(
    s, u, a_rows, resets, h_pointers, i, offs_n, N, left,
    LO: tl.constexpr, HI: tl.constexpr, TANH: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """The steps from i on, one for each of a_rows, of which `left` exist: stores h.

    s: [BLOCK_N], the state before step i. Returns the state after the steps. resets: as bits, see
    `load_resets`.
    """
    h_ptrs = h_pointers[0] + i * h_pointers[1] + offs_n
    for r in tl.static_range(len(a_rows)):
        previous = s
        if HAS_RESETS:
            previous = tl.where((resets >> r) & 1 != 0, 0.0, s)
        h = step(a_rows[r].to(s.dtype), u, previous, LO, HI, TANH)
        tl.store(h_ptrs, h, mask=channel_mask(offs_n, N, r < left))
        h_ptrs += h_pointers[1]
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
    stride_rb,  # of resets
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    TANH: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,  # steps of a group, whose rows are loaded together
    STAGES: tl.constexpr,  # STAGES - 1 groups are copied ahead; 1: rows in registers instead
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of a and h
):
    """h_t = clamp(a_t + u * h_{t-1}, LO, HI), or tanh, and h_n, the state after the last step.

    Where resets[b, t], h_{t-1} counts as 0. Grid: (B * blocks of channels, CHUNKS). Saves h alone
    for the backward. Floor: a read and h written once, 2*B*T*N elements; for each element a
    multiply-add and a maximum, and two conversions where a has 16 bits. Source: see the head of
    this file.
    """
    b, chunk, first_row, length, start, stop, end, offs_n = program_coordinates(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    ragged_N = None if EVEN_N else as_multiple(N, VECTOR)
    mask = channel_mask(offs_n, ragged_N, True)
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    u = tl.load(u_ptr + offs_n, mask=mask).to(ACC)
    s = tl.zeros([BLOCK_N], ACC)
    if start_ptr is not None:
        s = tl.load(start_ptr + (b * CHUNKS + chunk) * N + offs_n, mask=mask).to(ACC)
    a_pointers = row_pointers(a_ptr, b, first_row, length, stride_ab, stride_at, REVERSE, VECTOR)
    h_pointers = row_pointers(h_ptr, b, first_row, length, stride_hb, stride_ht, REVERSE, VECTOR)
    resets_pointers = row_pointers(resets_ptr, b, first_row, length, stride_rb, stride_rt, REVERSE)

    HAS_RESETS: tl.constexpr = resets_ptr is not None
    # Steps of a group after the last whole one. In Triton 3.4 `min` would make a tensor of it.
    TAIL: tl.constexpr = ROWS if ROWS < 8 else 8
    whole = start + (stop - start) // ROWS * ROWS
    every = tl.full([], ROWS, tl.int64)  # a constant: the masks of whole groups compile to nothing
    # Resets are loaded a group ahead: nothing else hides the time that takes.
    resets = load_resets(resets_pointers, start, stop - start, ROWS)
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        next_resets = load_resets(resets_pointers, i + ROWS, stop - i - ROWS, ROWS)
        a_rows = load_group(a_pointers, i, offs_n, ragged_N, ROWS, STAGES)
        s = _forward_steps(
            s, u, a_rows, resets, h_pointers, i, offs_n, ragged_N, every, LO, HI, TANH, HAS_RESETS
        )  # fmt: skip
        resets = next_resets
    for i in range(whole, stop, TAIL):
        left = stop - i
        a_rows = load_rows(a_pointers, i, offs_n, ragged_N, left, TAIL)
        s = _forward_steps(
            s, u, a_rows, resets, h_pointers, i, offs_n, ragged_N, left, LO, HI, TANH, HAS_RESETS
        )  # fmt: skip
        resets >>= TAIL

    has_last_step = (stop == length) & ((start < length) | (chunk == 0))
    tl.store(h_n_ptr + b * N + offs_n, s, mask=channel_mask(offs_n, ragged_N, has_last_step))
    if lengths_ptr is not None:
        zero_padding(h_ptr, b, length, start, end, offs_n, ragged_N, stride_hb, stride_ht)


@triton.jit
def _backward_steps(
    d, grad_u, grad_bias, h, extra, u, h0, lo, hi,
    g_rows, h_rows, resets, d_pointers, i, offs_n, N, left,
    LO: tl.constexpr, HI: tl.constexpr, TANH: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """The steps from i on, one for each of g_rows: stores d; returns d, grad_u, grad_bias and h for
    the step after them.

    left: the number of steps that the sequence has from step i on; no more of them are taken. d:
    [BLOCK_N], the d_{t+1} that reaches step i, 0 if time t+1 has a reset. h: the stored output of
    step i. h_rows: for each step, the stored output of the step after it, which is earlier in time.
    extra: a gradient with respect to the output of step i, besides g. lo, hi: bounds of d, or None.
    """
    d_ptrs = d_pointers[0] + i * d_pointers[1] + offs_n
    for r in tl.static_range(len(g_rows)):
        g = g_rows[r].to(d.dtype)
        if r == 0:
            g += extra
        if TANH:
            slope = 1.0 - h * h
            new = step(slope * g, slope * u, d, lo, hi)
        else:
            new = tl.where(at_bound(h, LO, HI), 0.0, step(g, u, d, lo, hi))
        tl.store(d_ptrs, new, mask=channel_mask(offs_n, N, r < left))
        d_ptrs += d_pointers[1]
        grad_bias = tl.where(r < left, grad_bias + new, grad_bias)
        h = tl.where(r == left - 1, h0, h_rows[r].to(d.dtype))
        product = new * h
        if HAS_RESETS:
            reset = (resets >> r) & 1 != 0
            product = tl.where(reset, 0.0, product)
            new = tl.where(reset, 0.0, new)
        grad_u = tl.where(r < left, grad_u + product, grad_u)
        d = tl.where(r < left, new, d)
    return d, grad_u, grad_bias, h


@triton.jit(do_not_specialize=["T"])
def _scan_bwd_kernel(
    g_ptr,  # [B, T, N], gradient of h
    g_n_ptr,  # [B, N], gradient of h_n, or None
    h_ptr,  # [B, T, N], the stored output
    u_ptr,  # [N]
    h0_ptr,  # [B, N] or None
    start_ptr,  # [B, CHUNKS, N], the d_{t+1} with which each chunk starts; None: zeros
    d_ptr,  # [B, T, N], gradient of a; may be g_ptr
    sums_ptr,  # [2, B, CHUNKS, N], each program's terms of the gradients of u and of the bias
    grad_h0_ptr,  # [B, N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None
    resets_ptr,  # [B, T] or None
    clip,  # c rounded to float32, or None
    clip_rest,  # what the rounding left, or None
    T,
    N,
    stride_gb,
    stride_gt,
    stride_hb,
    stride_ht,
    stride_db,
    stride_dt,
    stride_rb,  # of resets
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    TANH: tl.constexpr,
    REVERSE: tl.constexpr,  # the opposite of the forward's
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,  # steps of a group, whose rows are loaded together
    STAGES: tl.constexpr,  # STAGES - 1 groups are copied ahead; 1: rows in registers instead
    BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    VECTOR: tl.constexpr,  # a power of two that divides N and the strides of g, h and d
):
    """d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c); grad_u = sum d_t * h_{t-1}; grad_bias = sum
    d_t; grad_h0 = u * d of the first time.

    m_t = 0 where h_t is at a bound, else 1; for tanh, 1 - h_t^2. The gradient of h_n is added to
    the g_t of the last time. Where resets[b, t], h_{t-1} does not take part in step t: d_t is
    neither passed to time t-1 nor multiplied with h_{t-1}. Grid: (B * blocks of channels, CHUNKS).
    Reads the h that the forward saved. Floor: g and h read and d written once, 3*B*T*N elements;
    for each two multiply-adds, an addition, a comparison and a selection, and with a clip a minimum
    and a maximum. Source: see the head of this file.
    """
    b, chunk, first_row, length, start, stop, end, offs_n = program_coordinates(
        T, N, lengths_ptr, cu_seqlens_ptr, CHUNKS, ROWS, BLOCK_N, VECTOR
    )
    ragged_N = None if EVEN_N else as_multiple(N, VECTOR)
    mask = channel_mask(offs_n, ragged_N, True)
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
        arrives = channel_mask(offs_n, ragged_N, chunk == 0)
        g_n = tl.load(g_n_ptr + b * N + offs_n, mask=arrives, other=0.0).to(ACC)
    g_pointers = row_pointers(g_ptr, b, first_row, length, stride_gb, stride_gt, REVERSE, VECTOR)
    h_pointers = row_pointers(h_ptr, b, first_row, length, stride_hb, stride_ht, REVERSE, VECTOR)
    d_pointers = row_pointers(d_ptr, b, first_row, length, stride_db, stride_dt, REVERSE, VECTOR)
    resets_pointers = row_pointers(resets_ptr, b, first_row, length, stride_rb, stride_rt, REVERSE)
    lo = None
    hi = None
    if clip is not None:
        # A launch argument is float32; float64 needs the rest of the number.
        hi = tl.cast(clip, ACC) + clip_rest
        lo = -hi

    extra = g_n
    grad_u = zeros
    grad_bias = zeros
    h = load_rows(h_pointers, start, offs_n, ragged_N, stop - start, 1)[0].to(ACC)
    HAS_RESETS: tl.constexpr = resets_ptr is not None
    TAIL: tl.constexpr = ROWS if ROWS < 8 else 8
    # A whole group is one that a further step follows, because it loads that step's h as well.
    whole = start + tl.maximum(tl.minimum(stop, length - 1) - start, 0) // ROWS * ROWS
    more = tl.full([], ROWS + 1, tl.int64)  # a constant, so that the masks compile to nothing
    resets = load_resets(resets_pointers, start, stop - start, ROWS)
    for i in tl.range(start, whole, ROWS, num_stages=STAGES):
        next_resets = load_resets(resets_pointers, i + ROWS, stop - i - ROWS, ROWS)
        g_rows = load_group(g_pointers, i, offs_n, ragged_N, ROWS, STAGES)
        h_rows = load_group(h_pointers, i + 1, offs_n, ragged_N, ROWS, STAGES)
        d, grad_u, grad_bias, h = _backward_steps(
            d, grad_u, grad_bias, h, extra, u, h0, lo, hi, g_rows, h_rows, resets, d_pointers,
            i, offs_n, ragged_N, more, LO, HI, TANH, HAS_RESETS,
        )  # fmt: skip
        extra = zeros
        resets = next_resets
    for i in range(whole, stop, TAIL):
        g_rows = load_rows(g_pointers, i, offs_n, ragged_N, stop - i, TAIL)
        h_rows = load_rows(h_pointers, i + 1, offs_n, ragged_N, stop - i - 1, TAIL)
        d, grad_u, grad_bias, h = _backward_steps(
            d, grad_u, grad_bias, h, extra, u, h0, lo, hi, g_rows, h_rows, resets, d_pointers,
            i, offs_n, ragged_N, stop - i, LO, HI, TANH, HAS_RESETS,
        )  # fmt: skip
        extra = zeros
        resets >>= TAIL

    sums = sums_ptr + (b * CHUNKS + chunk) * N + offs_n
    tl.store(sums, grad_u, mask=mask)
    # In 64 bits. N cannot be widened: Triton passes an N of 1 as a plain number, without `to`.
    sums += (tl.num_programs(0) // tl.cdiv(N, BLOCK_N)).to(tl.int64) * CHUNKS * N
    tl.store(sums, grad_bias, mask=mask)
    has_last_step = (stop == length) & ((start < length) | (chunk == 0))
    grad_h0 = tl.where(length == 0, g_n, u * d)
    mask = channel_mask(offs_n, ragged_N, has_last_step)
    tl.store(grad_h0_ptr + b * N + offs_n, grad_h0, mask=mask)
    if lengths_ptr is not None:
        zero_padding(d_ptr, b, length, start, end, offs_n, ragged_N, stride_db, stride_dt)
