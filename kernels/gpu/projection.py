"""The projection and the recurrence in one kernel, forward and backward.

    forward   h_t = clamp(W x_t + b + u * h_{t-1}, lo, hi)
    backward  d_t = clamp(m_t * (W'^T d'_t + u * d_{t+1}), -c, c)    m_t read off the stored h_t

d' is the gradient of the next layer's pre-activation and W' its weight: in a stack of plain layers
the reverse recurrence of one layer is the epilogue of the product that the next layer's gradient
needs anyway. Li et al. 2018, arXiv 1803.04831, eq. 4.

A program owns one sequence and BLOCK_N channels, and walks tiles of BLOCK_T steps. The product of
a tile has channels as rows and time as columns, permuted so that each lane owns consecutive steps
(see `registers`): fold them into one map, walk the lanes of a row in order, run them again from the
right start. CHAINED: each tile is a program of its own (see `tiles`).

Steps are counted along the forward walk: step i is time i, or length-1-i where REVERSE. Offsets are
64 bits wide, but those in a weight; strides count elements; channels are adjacent. With cu_seqlens
T is the number of rows. State and sums are float32.

Found by compiling, in instructions an element outside of the loop over K, bfloat16 (for what was
kept see bench/results/sass.json); nothing here has been timed on a GPU:
- Tiles are the largest that keep the recurrence in registers with warps along channels alone. On
  sm_80 64 steps instead of 32 put two warps along time: 52 barriers instead of 15, and 248
  registers. On gfx942 64 x 128 has 70 barriers. On sm_90 128 x 256 spills 24 bytes.
- sm_90, 128 x 128, 8 warps: 11.7, and 2 more where a u is negative; 5.3 are the recurrence, 1 the
  bias, 1 the way to 16 bits, 2 the first loads of the product. sm_100, where a lane owns a row,
  needs no fold: 8.5. sm_80 18.5. gfx942 has no maximum that keeps NaN: 35; gfx950 has: 14.
- Backward on sm_90 28, with a clip 38: h comes through shared memory into the accumulator's layout,
  and two bounds are carried. The scan alone has 11, and 3 passes over memory instead of 2.
- In float32 without TF32 the product takes plain instructions, and the library's is better. With
  TF32, sm_90 multiplies operands where they lie in shared memory and cuts their last 13 bits off,
  where the library may round them. With K = 512 the largest error of a product is 7e-4 of the
  largest value, and 3e-4 with rounding; where all numbers are positive, each sum is 7e-4 too small.
  Rounding would take an instruction for each number of x and tile, and x through registers.
- Weights that stay in shared memory: those of one block of K, and of more blocks as far as they fit
  (`model.tile`), but in no chain. The next tile's input then lies in registers during a tile's
  recurrence, so tiles are smaller: sm_90 128 x 64 and 18.3 instead of 11.7 at K = 512, 14.9 at
  K = 256, where two programs fit on a multiprocessor; backward with a clip 40.5 and 38.3. At
  K = N = 512 the emulator counts 4 reads of x and one of the weights instead of 4 and T / 128.
- Issuing the product of the next tile before the recurrence of this one: Triton waits for it at
  once. In a trial the assembler moved the recurrence in front of that wait at K = 512, with 255
  registers and 40 bytes spilled; at K = 256, with a ring, the recurrence stayed before the product.
- Backward with a K of one block: the tile of h passes through the ring, and its transposed load has
  a 4-way bank conflict (512 wavefronts a tile where 128 would do; 384 clocks beside 2,400 of
  instructions). The form with weights of several blocks has none, but waits for h in every tile.
- x through TMA: not tried, as 8 of the 82 instructions of the loop over K are its copies.
"""

import triton
import triton.language as tl

from .clamped_affine import step, stopped, without_infinities
from .indexing import within, zero_rows
from .registers import (
    falls_or_grows,
    fold_steps,
    fold_steps_back,
    in_order,
    in_runs,
    lanes_in_order,
    lanes_one_by_one,
    step_of_column,
    together,
)
from .tiles import (
    await_state,
    input_blocks,
    input_in_registers,
    place_of,
    publish,
    resident_product,
    resident_weights,
    streamed_product,
    time_of,
)


@triton.jit(do_not_specialize=["T"])
def _fused_fwd_kernel(
    x_ptr,  # [B, T, K]
    w_ptr,  # [HALVES * N, K]
    b_ptr,  # [HALVES * N] or None
    u_ptr,  # [HALVES * N]
    h0_ptr,  # [B, HALVES * N] or None
    h_ptr,  # [B, T, HALVES * N]
    h_n_ptr,  # [B, HALVES * N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None; not if CHAINED
    resets_ptr,  # [B, T] or None
    ticket_ptr,  # [1], zero, and ...
    states_ptr,  # ... a word for each tile, program abreast and channel, zero; None: not CHAINED
    T,
    N,
    K,
    stride_xb,
    stride_xt,
    stride_wn,
    stride_wk,
    stride_hb,
    stride_ht,
    stride_rb,
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,
    HALVES: tl.constexpr,  # 2: N more channels walk the other way
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    BLOCKS_K: tl.constexpr,  # of the weights, which stay in shared memory; 0: they are streamed
    AHEAD: tl.constexpr,  # the next tile's input is loaded into registers
    LANES: tl.constexpr,
    RUN: tl.constexpr,
    LEVELS: tl.constexpr,  # log2 of BLOCK_T / LANES
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    COPIES: tl.constexpr,  # see `await_state`
    PRECISION: tl.constexpr,  # of a product of float32
):
    """h_t = clamp(W x_t + b + u * h_{t-1}, LO, HI), and h_n, the state after the last step.

    Where resets, h_{t-1} counts as 0. Saves h alone. Floor: the larger of 2*B*T*K*N operations on
    the tensor cores, and x read and h written once.
    """
    tl.assume(K > 0)
    b, first, length, padded, half, channels, abreast, place, tile = place_of(
        ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr, HALVES, BLOCK_T, BLOCK_N
    )
    mask_n = channels < N
    offs_n = half * N + channels
    offs_k = tl.arange(0, BLOCK_K)
    order = step_of_column(BLOCK_T, LANES, RUN)
    steps = tl.arange(0, BLOCK_T)
    x_ptr += b * stride_xb + first * stride_xt
    h_ptr += b * stride_hb + first * stride_ht
    w_ptrs = w_ptr + offs_n[:, None] * stride_wn + offs_k[None, :] * stride_wk
    ws = resident_weights(w_ptrs, stride_wk, mask_n, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K)
    u = tl.load(u_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_N], tl.float32)
    if b_ptr is not None:
        bias = tl.load(b_ptr + offs_n, mask=mask_n).to(tl.float32)
    state = tl.zeros([BLOCK_N], tl.float32)
    if h0_ptr is not None:
        state = tl.load(h0_ptr + b * N * HALVES + offs_n, mask=mask_n).to(tl.float32)
    falls, grows = falls_or_grows(u, BLOCK_T // LANES)
    u = tl.broadcast_to(u[:, None], [BLOCK_N, LANES])
    begin, end = length * 0, length
    if ticket_ptr is not None:
        begin = tile * BLOCK_T
        end = tl.minimum(begin + BLOCK_T, length)
        words = states_ptr + (tile.to(tl.int64) * abreast + place) * BLOCK_N
    if AHEAD:
        rows = begin + tl.minimum(order, length - begin - 1)
        valid = rows >= 0
        rows = time_of(rows, length, half, REVERSE, HALVES)
        xs = input_in_registers(x_ptr, rows, valid, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
    for i in tl.range(begin, end, BLOCK_T, num_stages=STAGES if BLOCKS_K > 0 else 1):
        left = length - i
        rows = time_of(i + tl.minimum(order, left - 1), length, half, REVERSE, HALVES)
        out = time_of(i + steps, length, half, REVERSE, HALVES)
        acc = tl.broadcast_to(bias[:, None], [BLOCK_N, BLOCK_T])
        if BLOCKS_K == 0:
            acc = streamed_product(
                x_ptr, rows, None, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
                EVEN_K, BLOCK_K, STAGES, PRECISION,
            )  # fmt: skip
        else:
            if not AHEAD:
                xs = input_blocks(
                    x_ptr, rows, None, stride_xt, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K
                )
            acc = resident_product(ws, xs, acc, AHEAD, PRECISION)
        if AHEAD:
            later = i + tl.minimum(BLOCK_T + order, left - 1)
            later = time_of(later, length, half, REVERSE, HALVES)
            xs = input_in_registers(x_ptr, later, None, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
        a = in_runs(acc, LANES, RUN, LEVELS)
        cut = None
        if resets_ptr is not None:
            resets = tl.load(resets_ptr + b * stride_rb + (first + rows) * stride_rt)
            resets = tl.where(resets[None, :], 1.0, tl.zeros_like(acc))
            cut = in_runs(resets, LANES, RUN, LEVELS)
        s = tl.broadcast_to(state[:, None], [BLOCK_N, LANES])
        if LANES > 1 or ticket_ptr is not None:
            known = None
            if h0_ptr is not None:
                known = (tl.arange(0, LANES)[None, :] == 0) & (tile == 0)
            P, Q, E0, E1 = fold_steps(a, cut, u, falls, known, s, LO, HI, LEVELS)
            if ticket_ptr is not None:  # noqa: SIM102
                if tile > 0:  # a tensor: no `and`
                    state = await_state(words - abreast * BLOCK_N, BLOCK_N, COPIES)
            FORGETS: tl.constexpr = (h0_ptr is not None) or (resets_ptr is not None)
            if LANES == 1:
                # The start is known, and the end, where it is not folded, after the last step.
                s, state = lanes_in_order(P, Q, E0, E1, state, LO is not None, FORGETS)
            elif grows:
                s, state = lanes_one_by_one(a, None, cut, u, state, LO, HI, LO, HI)
            else:
                s, state = lanes_in_order(P, Q, E0, E1, state, LO is not None, FORGETS)
            if ticket_ptr is not None:  # noqa: SIM102
                if (LANES > 1) | ~grows:
                    publish(words, state)
        columns = ()
        for m in tl.static_range(BLOCK_T // LANES):
            if cut is not None:
                s = tl.where(cut[m] != 0.0, 0.0, s)
            s = step(a[m], u, s, LO, HI)
            columns = columns + (s,)  # noqa: RUF005
        if LANES == 1:
            state = tl.reshape(s, [BLOCK_N])
            if ticket_ptr is not None:  # noqa: SIM102
                if grows:
                    publish(words, state)
        h_ptrs = h_ptr + out[:, None].to(tl.int64) * stride_ht + offs_n[None, :]
        mask = (steps < left)[:, None] & mask_n[None, :]
        tl.store(h_ptrs, in_order(columns, h_ptr.dtype.element_ty, LEVELS), mask=mask)

    # What this program stored is there after a barrier.
    tl.debug_barrier()
    last = (end == length) & ((begin < length) | (tile == 0))
    there = last & (length > 0)
    row = time_of(length - 1, length, half, REVERSE, HALVES)
    h_n_ptrs = h_ptr + row.to(tl.int64) * stride_ht + offs_n
    h_n = tl.load(h_n_ptrs, mask=within(channels, N, there)).to(tl.float32)
    h_n = tl.where(there, h_n, state)
    tl.store(h_n_ptr + b * N * HALVES + offs_n, h_n, mask=within(channels, N, last))
    if lengths_ptr is not None:
        stop = padded
        if ticket_ptr is not None:
            stop = tl.minimum(begin + BLOCK_T, padded)
        zero_rows(
            h_ptr + half * N, b * 0, length.to(tl.int64), begin, stop, channels, N, 0, stride_ht
        )


@triton.jit(do_not_specialize=["T"])
def _fused_bwd_kernel(
    x_ptr,  # [B, T, K], gradient of the next layer's pre-activation
    w_ptr,  # [K, N], the next layer's weight
    g_n_ptr,  # [B, N], gradient of h_n, or None
    h_ptr,  # [B, T, N], the stored output
    u_ptr,  # [N]
    h0_ptr,  # [B, N] or None
    d_ptr,  # [B, T, N], gradient of this layer's pre-activation
    sums_ptr,  # [2, tiles, B, N], this program's shares of the gradients of u and b
    grad_h0_ptr,  # [B, N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None; not if CHAINED
    resets_ptr,  # [B, T] or None
    ticket_ptr,  # as in `_fused_fwd_kernel`
    states_ptr,
    clip,  # c, or None
    T,
    N,
    K,
    stride_xb,
    stride_xt,
    stride_wn,
    stride_wk,
    stride_hb,
    stride_ht,
    stride_db,
    stride_dt,
    stride_rb,
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCKS_K: tl.constexpr,
    AHEAD: tl.constexpr,
    LANES: tl.constexpr,
    RUN: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    COPIES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c) with g_t = W^T x_t, which is not stored.

    grad_u = sum d_t * h_{t-1}, grad_b = sum d_t, grad_h0 = u * d_1; as in `_scan_bwd_kernel`.
    Floor: 2*B*T*K*N operations on the tensor cores, or x and h read and d written once.
    """
    tl.assume(K > 0)
    b, first, length, padded, _half, offs_n, abreast, place, tile = place_of(
        ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr, 1, BLOCK_T, BLOCK_N
    )
    mask_n = offs_n < N
    offs_k = tl.arange(0, BLOCK_K)
    order = step_of_column(BLOCK_T, LANES, RUN)
    steps = tl.arange(0, BLOCK_T)
    x_ptr += b * stride_xb + first * stride_xt
    h_ptr += b * stride_hb + first * stride_ht
    d_ptr += b * stride_db + first * stride_dt
    w_ptrs = w_ptr + offs_n[:, None] * stride_wn + offs_k[None, :] * stride_wk
    ws = resident_weights(w_ptrs, stride_wk, mask_n, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K)
    u_n = tl.load(u_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    _falls, grows = falls_or_grows(u_n, BLOCK_T // LANES)
    u = tl.broadcast_to(u_n[:, None], [BLOCK_N, LANES])
    state = tl.zeros([BLOCK_N], tl.float32)
    sum_u = tl.zeros([BLOCK_N, LANES], tl.float32)
    sum_b = tl.zeros([BLOCK_N, LANES], tl.float32)
    lo = None
    hi = None
    if clip is not None:
        hi = tl.cast(clip, tl.float32)
        lo = -hi
    tiles = tl.cdiv(length, BLOCK_T)
    begin, end = tile * 0, tiles
    if ticket_ptr is not None:
        begin, end = tile, tl.minimum(tile + 1, tiles)
        words = states_ptr + (tile.to(tl.int64) * abreast + place) * BLOCK_N
    if AHEAD:
        rows = (tiles - begin) * BLOCK_T - 1 - order
        valid = (rows >= 0) & (rows < length)
        rows = time_of(rows, length, 0, REVERSE, 1)
        xs = input_in_registers(x_ptr, rows, valid, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
    for k in tl.range(begin, end, num_stages=STAGES if BLOCKS_K > 0 else 1):
        # The walk goes down from the tile's last step; those past the length come first, as zeros.
        top = (tiles - k) * BLOCK_T - 1
        rows = top - order
        out = top - steps
        valid = rows < length
        at_end = rows == length - 1
        stored = out < length
        rows = time_of(rows, length, 0, REVERSE, 1)
        out = time_of(out, length, 0, REVERSE, 1)
        acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        if BLOCKS_K == 0:
            acc = streamed_product(
                x_ptr, rows, valid, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
                EVEN_K, BLOCK_K, STAGES, PRECISION,
            )  # fmt: skip
        else:
            if not AHEAD:
                xs = input_blocks(
                    x_ptr, rows, valid, stride_xt, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K
                )
            acc = resident_product(ws, xs, acc, AHEAD, PRECISION)
        if AHEAD:
            # Below the first tile lies none: its own first row is loaded once more.
            later = tl.maximum(top - BLOCK_T - order, 0)
            later = time_of(later, length, 0, REVERSE, 1)
            xs = input_in_registers(x_ptr, later, None, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
        if g_n_ptr is not None:
            g_n = tl.load(g_n_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
            acc += tl.where(at_end[None, :], g_n[:, None], 0.0)
        h_ptrs = h_ptr + rows[None, :].to(tl.int64) * stride_ht + offs_n[:, None]
        h_tile = tl.load(h_ptrs, mask=mask_n[:, None] & valid[None, :], other=0.0).to(tl.float32)
        acc, h_tile = together(acc, h_tile)
        # h_t times the gradient that arrives at it, d_{t+1}, is a share of grad_u. Where none
        # arrives, h_t must count for nothing, be it infinite or NaN: 0 times a finite number.
        if k == 0:
            h_tile = without_infinities(h_tile, at_end)
        g = in_runs(acc, LANES, RUN, LEVELS)
        h = in_runs(h_tile, LANES, RUN, LEVELS)
        cut = None
        if resets_ptr is not None:
            resets_row = resets_ptr + b * stride_rb + first * stride_rt
            # Whether each lane's first step is parted from the one before it in the walk.
            before = top + 1 - tl.arange(0, LANES) * (BLOCK_T // LANES)
            there = before < length
            before = length - 1 - before if REVERSE else before
            parted = tl.load(resets_row + before.to(tl.int64) * stride_rt, mask=there, other=0)
            parted = parted[None, :]
            resets = tl.load(resets_row + rows.to(tl.int64) * stride_rt, mask=valid, other=0)
            resets = tl.where(resets[None, :], 1.0, tl.zeros_like(acc))
            cut = in_runs(resets, LANES, RUN, LEVELS)
        s = tl.broadcast_to(state[:, None], [BLOCK_N, LANES])
        if LANES > 1 or ticket_ptr is not None:
            P, Q, E0, E1 = fold_steps_back(g, h, cut, u, lo, hi, LO, HI, LEVELS)
            if ticket_ptr is not None:  # noqa: SIM102
                if k > 0:  # a tensor: no `and`
                    state = await_state(words - abreast * BLOCK_N, BLOCK_N, COPIES)
            if LANES == 1:
                s, state = lanes_in_order(P, Q, E0, E1, state, lo is not None, True)
            elif grows:
                s, state = lanes_one_by_one(g, h, cut, u, state, lo, hi, LO, HI)
            else:
                s, state = lanes_in_order(P, Q, E0, E1, state, lo is not None, True)
            if ticket_ptr is not None:  # noqa: SIM102
                if (LANES > 1) | ~grows:
                    publish(words, state)
        columns = ()
        for m in tl.static_range(BLOCK_T // LANES):
            share = s * h[m]
            if cut is not None:
                share = tl.where(parted, 0.0, share)
                parted = cut[m] != 0.0
            sum_u += share
            s = tl.where(stopped(h[m], LO, HI), 0.0, step(g[m], u, s, lo, hi))
            sum_b += s
            columns = columns + (s,)  # noqa: RUF005
            if cut is not None:
                s = tl.where(cut[m] != 0.0, 0.0, s)
        if LANES == 1:
            state = tl.reshape(s, [BLOCK_N])
            if ticket_ptr is not None:  # noqa: SIM102
                if grows:
                    publish(words, state)
        d_ptrs = d_ptr + out[:, None].to(tl.int64) * stride_dt + offs_n[None, :]
        mask = stored[:, None] & mask_n[None, :]
        tl.store(d_ptrs, in_order(columns, d_ptr.dtype.element_ty, LEVELS), mask=mask)

    grad_u = tl.sum(sum_u, 1)
    grad_h0 = u_n * state
    last = (end == tiles) & ((begin < tiles) | (tile == 0))
    h0 = tl.zeros_like(state)
    if h0_ptr is not None:
        h0 = tl.load(h0_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
    arrives = last & (length > 0)
    if resets_ptr is not None:
        row = first + (length - 1 if REVERSE else 0)
        at_begin = resets_ptr + b * stride_rb + row.to(tl.int64) * stride_rt
        arrives &= tl.load(at_begin, mask=arrives, other=0) == 0
    grad_u += tl.where(arrives, state * h0, 0.0)
    if g_n_ptr is not None:
        g_n = tl.load(g_n_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
        grad_h0 = tl.where(tiles == 0, g_n, grad_h0)
    tl.store(grad_h0_ptr + b * N + offs_n, grad_h0, mask=within(offs_n, N, last))
    shares = tl.cdiv(T, BLOCK_T) if ticket_ptr is not None else 1
    batch = abreast // tl.cdiv(N, BLOCK_N)
    sum_ptrs = sums_ptr + (tile * batch.to(tl.int64) + b) * N + offs_n
    tl.store(sum_ptrs, grad_u, mask=mask_n)
    tl.store(sum_ptrs + shares * batch.to(tl.int64) * N, tl.sum(sum_b, 1), mask=mask_n)
    if lengths_ptr is not None:
        start, stop = length * 0, padded
        if ticket_ptr is not None:
            start = tile * BLOCK_T
            stop = tl.minimum(start + BLOCK_T, padded)
        zero_rows(d_ptr, b * 0, length.to(tl.int64), start, stop, offs_n, N, 0, stride_dt)
