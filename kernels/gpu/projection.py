"""The projection and the recurrence in one kernel: forward. The backward is `projection_backward`.

    forward   h_t = clamp(W x_t + b + u * h_{t-1}, lo, hi)
    backward  d_t = clamp(m_t * (W'^T d'_t + u * d_{t+1}), -c, c)      m_t from the stored h_t

x: [B, T, K]. W: [N, K]. b, u: [N]. h: [B, T, N]. d_t is the gradient with respect to the
pre-activation W x_t + b, and d', W' are that of the next layer and its weight: in a stack of layers
with nothing between them, the recurrence of one layer's backward is done on the product that the
next layer's gradient needs anyway. Source: Li et al. 2018, arXiv 1803.04831, eq. 4; the clip at
every step is Lasagne's grad_clipping.

A program takes one sequence and BLOCK_N channels, in tiles of BLOCK_T steps one after the other; or
one tile of a chain (see `tiles`). For each tile it computes the product [BLOCK_N, BLOCK_T] on the
tensor cores, with time permuted so that each lane holds consecutive steps of its channels, and then
the recurrence in registers (see `registers`).

Conventions of both kernels. Steps are counted in the order of the forward: step i is time i, or
length-1-i if REVERSE. stride_xt is the stride of x along t, in elements; the stride along channels
and features is 1, except in a weight; offsets are 64 bits wide, except in a weight. T is the padded
length. With cu_seqlens [B + 1] the tensors are [rows, ...], sequence b is rows cu_seqlens[b] to
cu_seqlens[b + 1], strides along b are 0, and T is the number of rows. Times past a sequence's
length are not read; to their rows 0 is written. State and sums are float32. With DIRECTIONS = 2
there are 2*N channels, and the second N take the steps in the opposite order.

What compiling has shown (instructions and registers of each kernel are in bench/results/sass.json):
- Tiles are the largest ones that keep the recurrence in registers and put warps along channels
  only. On sm_80, 64 steps instead of 32 put two warps along time, which takes 52 barriers instead
  of 15 and 248 registers; on gfx942 64 channels x 128 steps take 70 barriers; on sm_90 128 x 256
  spill 24 bytes.
- Weights of one block of K stay in shared memory; those of more blocks do as far as they fit (see
  `model.pick_tile`), but not in a chain, where a program has one tile. The input of the next tile
  then lies in registers during a tile's recurrence, so tiles are smaller.
- In float32 without TF32 the product is made of ordinary instructions, and the library's is better.
  With TF32, sm_90 multiplies operands from shared memory and drops their last 13 bits, where the
  library may round them. With K = 512 the largest error of a product is 7e-4 of the largest value,
  and 3e-4 with rounding; where all numbers are positive, each sum is 7e-4 too small. To round would
  take an instruction for each number of x and tile, and x would pass through registers.
- The product of the next tile cannot run during the recurrence of this one: Triton waits for a
  product where it is issued.
- In the backward, where K is one block, the tile of h passes through shared memory, and its
  transposed load has a 4-way bank conflict. Where weights of several blocks stay there is none, but
  every tile waits for its h.
"""

import triton
import triton.language as tl

from .clamped_affine import step
from .indexing import channel_mask, zero_padding
from .registers import (
    classify_u,
    join_steps,
    propagate_lanes,
    propagate_lanes_by_steps,
    split_steps,
    step_of_column,
    summarize_steps,
)
from .tiles import (
    await_state,
    input_blocks,
    input_in_registers,
    publish_state,
    resident_product,
    resident_weights,
    streamed_product,
    tile_coordinates,
    time_of_step,
)


@triton.jit(do_not_specialize=["T"])
def _fused_fwd_kernel(
    x_ptr,  # [B, T, K]
    w_ptr,  # [DIRECTIONS * N, K]
    b_ptr,  # [DIRECTIONS * N] or None
    u_ptr,  # [DIRECTIONS * N]
    h0_ptr,  # [B, DIRECTIONS * N] or None
    h_ptr,  # [B, T, DIRECTIONS * N]
    h_n_ptr,  # [B, DIRECTIONS * N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None; None in a chain
    resets_ptr,  # [B, T] or None
    ticket_ptr,  # [1] int32, 0: counts the programs that have started; None: no chains
    states_ptr,  # [tiles, chains, BLOCK_N] int64, 0: the state after each tile; None: no chains
    T,
    N,
    K,
    stride_xb,
    stride_xt,
    stride_wn,
    stride_wk,
    stride_hb,
    stride_ht,
    stride_rb,  # of resets
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,
    DIRECTIONS: tl.constexpr,  # 1, or 2 for both
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    BLOCKS_K: tl.constexpr,  # blocks of K whose weights stay in shared memory; 0: none stays
    AHEAD: tl.constexpr,  # the input of the next tile is loaded into registers during this one
    LANES: tl.constexpr,  # lanes that hold a row of the accumulator; see `registers`
    ADJACENT: tl.constexpr,  # neighbouring columns that a lane holds
    LEVELS: tl.constexpr,  # log2 of BLOCK_T / LANES
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,  # num_stages of the loop over K; or, if weights stay, of that over tiles
    COPIES: tl.constexpr,  # see `await_state`
    PRECISION: tl.constexpr,  # of a product of float32: "tf32" or "ieee"
):
    """h_t = clamp(W x_t + b + u * h_{t-1}, LO, HI), and h_n, the state after the last step.

    Where resets[b, t], h_{t-1} counts as 0. Grid: a program for each sequence, direction and block
    of channels; with chains, for each tile of each of these. Saves h alone for the backward. Floor:
    the larger of 2*B*T*K*N operations on the tensor cores, and x read and h written once, B*T*(K +
    N) elements. Source: see the head of this file.
    """
    tl.assume(K > 0)
    b, direction, first_row, length, padded_length, channels, programs_per_tile, chain, tile = (
        tile_coordinates(
            ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr, DIRECTIONS, BLOCK_T, BLOCK_N
        )
    )
    mask_n = channels < N
    offs_n = direction * N + channels
    offs_k = tl.arange(0, BLOCK_K)
    order = step_of_column(BLOCK_T, LANES, ADJACENT)
    offs_t = tl.arange(0, BLOCK_T)
    x_ptr += b * stride_xb + first_row * stride_xt
    h_ptr += b * stride_hb + first_row * stride_ht
    w_ptrs = w_ptr + offs_n[:, None] * stride_wn + offs_k[None, :] * stride_wk
    ws = resident_weights(w_ptrs, stride_wk, mask_n, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K)
    u = tl.load(u_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_N], tl.float32)
    if b_ptr is not None:
        bias = tl.load(b_ptr + offs_n, mask=mask_n).to(tl.float32)
    state = tl.zeros([BLOCK_N], tl.float32)
    if h0_ptr is not None:
        state = tl.load(h0_ptr + b * N * DIRECTIONS + offs_n, mask=mask_n).to(tl.float32)
    any_negative_u, any_growing = classify_u(u, BLOCK_T // LANES)
    u = tl.broadcast_to(u[:, None], [BLOCK_N, LANES])
    begin, end = length * 0, length
    if ticket_ptr is not None:
        begin = tile * BLOCK_T
        end = tl.minimum(begin + BLOCK_T, length)
        own_states_ptr = states_ptr + (tile.to(tl.int64) * programs_per_tile + chain) * BLOCK_N
    if AHEAD:
        times = begin + tl.minimum(order, length - begin - 1)
        valid = times >= 0
        times = time_of_step(times, length, direction, REVERSE, DIRECTIONS)
        xs = input_in_registers(x_ptr, times, valid, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
    for i in tl.range(begin, end, BLOCK_T, num_stages=STAGES if BLOCKS_K > 0 else 1):
        left = length - i
        # The input's time in each column. Past the last step, that is loaded once more.
        times = time_of_step(
            i + tl.minimum(order, left - 1), length, direction, REVERSE, DIRECTIONS
        )
        out_times = time_of_step(i + offs_t, length, direction, REVERSE, DIRECTIONS)
        acc = tl.broadcast_to(bias[:, None], [BLOCK_N, BLOCK_T])
        if BLOCKS_K == 0:
            acc = streamed_product(
                x_ptr, times, None, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
                EVEN_K, BLOCK_K, STAGES, PRECISION,
            )  # fmt: skip
        else:
            if not AHEAD:
                xs = input_blocks(
                    x_ptr, times, None, stride_xt, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K
                )
            acc = resident_product(ws, xs, acc, AHEAD, PRECISION)
        if AHEAD:
            later = i + tl.minimum(BLOCK_T + order, left - 1)
            later = time_of_step(later, length, direction, REVERSE, DIRECTIONS)
            xs = input_in_registers(x_ptr, later, None, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
        a = split_steps(acc, LANES, ADJACENT, LEVELS)
        reset = None
        if resets_ptr is not None:
            resets = tl.load(resets_ptr + b * stride_rb + (first_row + times) * stride_rt)
            resets = tl.where(resets[None, :], 1.0, tl.zeros_like(acc))
            reset = split_steps(resets, LANES, ADJACENT, LEVELS)
        # The start of each lane's steps: [BLOCK_N, LANES].
        s = tl.broadcast_to(state[:, None], [BLOCK_N, LANES])
        if LANES > 1 or ticket_ptr is not None:
            given = None
            if h0_ptr is not None:
                given = (tl.arange(0, LANES)[None, :] == 0) & (tile == 0)
            P, Q, E0, E1 = summarize_steps(a, reset, u, any_negative_u, given, s, LO, HI, LEVELS)
            if ticket_ptr is not None:  # noqa: SIM102
                if tile > 0:  # a tensor: no `and`
                    state = await_state(
                        own_states_ptr - programs_per_tile * BLOCK_N, BLOCK_N, COPIES
                    )
            HAS_CONSTANTS: tl.constexpr = (h0_ptr is not None) or (resets_ptr is not None)
            if LANES == 1:
                # The lane's start is the tile's. The state after the tile, which the map gives, is
                # published at once. Where a segment grows the map is wrong, and the state is
                # published after the last step, below.
                s, state = propagate_lanes(P, Q, E0, E1, state, LO is not None, HAS_CONSTANTS)
            elif any_growing:
                s, state = propagate_lanes_by_steps(a, None, reset, u, state, LO, HI, LO, HI)
            else:
                s, state = propagate_lanes(P, Q, E0, E1, state, LO is not None, HAS_CONSTANTS)
            if ticket_ptr is not None:  # noqa: SIM102
                if (LANES > 1) | ~any_growing:
                    publish_state(own_states_ptr, state)
        hs = ()
        for m in tl.static_range(BLOCK_T // LANES):
            if reset is not None:
                s = tl.where(reset[m] != 0.0, 0.0, s)
            s = step(a[m], u, s, LO, HI)
            hs = hs + (s,)  # noqa: RUF005
        if LANES == 1:
            state = tl.reshape(s, [BLOCK_N])
            if ticket_ptr is not None:  # noqa: SIM102
                if any_growing:
                    publish_state(own_states_ptr, state)
        h_ptrs = h_ptr + out_times[:, None].to(tl.int64) * stride_ht + offs_n[None, :]
        mask = (offs_t < left)[:, None] & mask_n[None, :]
        tl.store(h_ptrs, join_steps(hs, h_ptr.dtype.element_ty, LEVELS), mask=mask)

    # h_n is loaded from h, because `state` is the one after a whole tile, which may be past the
    # last step. The barrier lets this program see what all of its threads have stored.
    tl.debug_barrier()
    has_last_step = (end == length) & ((begin < length) | (tile == 0))
    is_stored = has_last_step & (length > 0)
    last_time = time_of_step(length - 1, length, direction, REVERSE, DIRECTIONS)
    h_n_ptrs = h_ptr + last_time.to(tl.int64) * stride_ht + offs_n
    h_n = tl.load(h_n_ptrs, mask=channel_mask(channels, N, is_stored)).to(tl.float32)
    h_n = tl.where(is_stored, h_n, state)
    tl.store(
        h_n_ptr + b * N * DIRECTIONS + offs_n, h_n, mask=channel_mask(channels, N, has_last_step)
    )
    if lengths_ptr is not None:
        stop = padded_length
        if ticket_ptr is not None:
            stop = tl.minimum(begin + BLOCK_T, padded_length)
        h_ptr += direction * N
        zero_padding(h_ptr, b * 0, length.to(tl.int64), begin, stop, channels, N, 0, stride_ht)
