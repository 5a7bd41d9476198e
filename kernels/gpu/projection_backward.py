"""The product with the next layer's weight and the recurrence in one kernel: backward.

Derivation, conventions and source as in `projection`.
"""

import triton
import triton.language as tl

from .clamped_affine import at_bound, largest_finite, step
from .indexing import channel_mask, zero_padding
from .registers import (
    classify_u,
    join_steps,
    propagate_lanes,
    propagate_lanes_by_steps,
    same_layout,
    split_steps,
    step_of_column,
    summarize_steps_backward,
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
def _fused_bwd_kernel(
    x_ptr,  # [B, T, K], gradient of the next layer's pre-activation, which has K channels
    w_ptr,  # [K, N], the next layer's weight
    g_n_ptr,  # [B, N], gradient of h_n, or None
    h_ptr,  # [B, T, N], the stored output
    u_ptr,  # [N]
    h0_ptr,  # [B, N] or None
    d_ptr,  # [B, T, N], gradient of this layer's pre-activation
    sums_ptr,  # [2, tiles, B, N], terms of the gradients of u and bias; without chains [2, 1, B, N]
    grad_h0_ptr,  # [B, N]
    lengths_ptr,  # [B] or None
    cu_seqlens_ptr,  # [B + 1] or None; None in a chain
    resets_ptr,  # [B, T] or None
    ticket_ptr,  # [1] int32, 0: counts the programs that have started; None: no chains
    states_ptr,  # [tiles, chains, BLOCK_N] int64, 0: d after each tile; None: no chains
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
    stride_rb,  # of resets
    stride_rt,
    LO: tl.constexpr,  # bounds of h, or None
    HI: tl.constexpr,
    REVERSE: tl.constexpr,  # the forward's
    EVEN_K: tl.constexpr,  # from here on as in `_fused_fwd_kernel`
    BLOCKS_K: tl.constexpr,
    AHEAD: tl.constexpr,
    LANES: tl.constexpr,
    ADJACENT: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    COPIES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c) with g_t = W^T x_t, which is not stored.

    grad_u = sum d_t * h_{t-1}, grad_bias = sum d_t, grad_h0 = u * d of the first time; m_t, the
    gradient of h_n and resets as in `_scan_bwd_kernel`. Grid: as for one direction of
    `_fused_fwd_kernel`. Reads the h that the forward saved. Floor: the larger of 2*B*T*K*N
    operations on the tensor cores, and x and h read and d written once, B*T*(K + 2*N) elements.
    Source: see `projection`.
    """
    tl.assume(K > 0)
    b, _direction, first_row, length, padded_length, offs_n, programs_per_tile, chain, tile = (
        tile_coordinates(ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr, 1, BLOCK_T, BLOCK_N)
    )
    mask_n = offs_n < N
    offs_k = tl.arange(0, BLOCK_K)
    order = step_of_column(BLOCK_T, LANES, ADJACENT)
    offs_t = tl.arange(0, BLOCK_T)
    x_ptr += b * stride_xb + first_row * stride_xt
    h_ptr += b * stride_hb + first_row * stride_ht
    d_ptr += b * stride_db + first_row * stride_dt
    w_ptrs = w_ptr + offs_n[:, None] * stride_wn + offs_k[None, :] * stride_wk
    ws = resident_weights(w_ptrs, stride_wk, mask_n, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K)
    u_n = tl.load(u_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    _any_negative_u, any_growing = classify_u(u_n, BLOCK_T // LANES)
    u = tl.broadcast_to(u_n[:, None], [BLOCK_N, LANES])
    state = tl.zeros([BLOCK_N], tl.float32)  # d_{t+1}, 0 if time t+1 has a reset
    sum_u = tl.zeros([BLOCK_N, LANES], tl.float32)
    sum_b = tl.zeros([BLOCK_N, LANES], tl.float32)
    lo = None
    hi = None
    if clip is not None:
        hi = tl.cast(clip, tl.float32)
        lo = -hi
    # Tile 0 is the last one of the sequence, which the backward takes first.
    tiles = tl.cdiv(length, BLOCK_T)
    begin, end = tile * 0, tiles
    if ticket_ptr is not None:
        begin, end = tile, tl.minimum(tile + 1, tiles)
        own_states_ptr = states_ptr + (tile.to(tl.int64) * programs_per_tile + chain) * BLOCK_N
    if AHEAD:
        times = (tiles - begin) * BLOCK_T - 1 - order
        valid = (times >= 0) & (times < length)
        times = time_of_step(times, length, 0, REVERSE, 1)
        xs = input_in_registers(x_ptr, times, valid, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
    for k in tl.range(begin, end, num_stages=STAGES if BLOCKS_K > 0 else 1):
        # The columns of a tile hold its steps downwards from the last one. Those past the length
        # come first: their gradients and outputs are zeros.
        last_step = (tiles - k) * BLOCK_T - 1
        times = last_step - order
        out_times = last_step - offs_t
        valid = times < length
        at_end = times == length - 1
        out_valid = out_times < length
        times = time_of_step(times, length, 0, REVERSE, 1)
        out_times = time_of_step(out_times, length, 0, REVERSE, 1)
        acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
        if BLOCKS_K == 0:
            acc = streamed_product(
                x_ptr, times, valid, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
                EVEN_K, BLOCK_K, STAGES, PRECISION,
            )  # fmt: skip
        else:
            if not AHEAD:
                xs = input_blocks(
                    x_ptr, times, valid, stride_xt, offs_k, K, EVEN_K, BLOCKS_K, BLOCK_K
                )
            acc = resident_product(ws, xs, acc, AHEAD, PRECISION)
        if AHEAD:
            # After the tile of step 0 there is none; step 0 is loaded instead and not used.
            later = tl.maximum(last_step - BLOCK_T - order, 0)
            later = time_of_step(later, length, 0, REVERSE, 1)
            xs = input_in_registers(x_ptr, later, None, stride_xt, K, EVEN_K, BLOCKS_K, BLOCK_K)
        if g_n_ptr is not None:
            g_n = tl.load(g_n_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
            acc += tl.where(at_end[None, :], g_n[:, None], 0.0)
        h_ptrs = h_ptr + times[None, :].to(tl.int64) * stride_ht + offs_n[:, None]
        h_tile = tl.load(h_ptrs, mask=mask_n[:, None] & valid[None, :], other=0.0).to(tl.float32)
        acc, h_tile = same_layout(acc, h_tile)
        # h_t * d_{t+1} is a term of grad_u. At the last time there is no d_{t+1}, and the term has
        # to be 0 even where h_t is infinite or NaN. A number inside of every nonlinearity's bounds
        # takes its place: infinities and NaN let the gradient pass as well.
        if k == 0:
            is_finite = tl.abs(h_tile) <= largest_finite(h_tile.dtype)
            h_tile = tl.where(at_end[None, :] & ~is_finite, 0.5, h_tile)
        g = split_steps(acc, LANES, ADJACENT, LEVELS)
        h = split_steps(h_tile, LANES, ADJACENT, LEVELS)
        reset = None
        if resets_ptr is not None:
            resets_row = resets_ptr + b * stride_rb + first_row * stride_rt
            # [1, LANES]: whether time t+1 has a reset, where t is that of each lane's first step.
            # Then there is no term h_t * d_{t+1}.
            next_times = last_step + 1 - tl.arange(0, LANES) * (BLOCK_T // LANES)
            exists = next_times < length
            next_times = time_of_step(next_times, length, 0, REVERSE, 1)
            next_reset = tl.load(
                resets_row + next_times.to(tl.int64) * stride_rt, mask=exists, other=0
            )
            next_reset = next_reset[None, :]
            resets = tl.load(resets_row + times.to(tl.int64) * stride_rt, mask=valid, other=0)
            resets = tl.where(resets[None, :], 1.0, tl.zeros_like(acc))
            reset = split_steps(resets, LANES, ADJACENT, LEVELS)
        # The d_{t+1} of each lane's first step: [BLOCK_N, LANES].
        s = tl.broadcast_to(state[:, None], [BLOCK_N, LANES])
        if LANES > 1 or ticket_ptr is not None:
            P, Q, E0, E1 = summarize_steps_backward(g, h, reset, u, lo, hi, LO, HI, LEVELS)
            if ticket_ptr is not None:  # noqa: SIM102
                if k > 0:  # a tensor: no `and`
                    state = await_state(
                        own_states_ptr - programs_per_tile * BLOCK_N, BLOCK_N, COPIES
                    )
            if LANES == 1:
                s, state = propagate_lanes(P, Q, E0, E1, state, lo is not None, True)
            elif any_growing:
                s, state = propagate_lanes_by_steps(g, h, reset, u, state, lo, hi, LO, HI)
            else:
                s, state = propagate_lanes(P, Q, E0, E1, state, lo is not None, True)
            if ticket_ptr is not None:  # noqa: SIM102
                if (LANES > 1) | ~any_growing:
                    publish_state(own_states_ptr, state)
        ds = ()
        for m in tl.static_range(BLOCK_T // LANES):
            product = s * h[m]
            if reset is not None:
                product = tl.where(next_reset, 0.0, product)
                next_reset = reset[m] != 0.0
            sum_u += product
            s = tl.where(at_bound(h[m], LO, HI), 0.0, step(g[m], u, s, lo, hi))
            sum_b += s
            ds = ds + (s,)  # noqa: RUF005
            if reset is not None:
                s = tl.where(reset[m] != 0.0, 0.0, s)
        if LANES == 1:
            state = tl.reshape(s, [BLOCK_N])
            if ticket_ptr is not None:  # noqa: SIM102
                if any_growing:
                    publish_state(own_states_ptr, state)
        d_ptrs = d_ptr + out_times[:, None].to(tl.int64) * stride_dt + offs_n[None, :]
        mask = out_valid[:, None] & mask_n[None, :]
        tl.store(d_ptrs, join_steps(ds, d_ptr.dtype.element_ty, LEVELS), mask=mask)

    grad_u = tl.sum(sum_u, 1)
    grad_h0 = u_n * state
    has_first_time = (end == tiles) & ((begin < tiles) | (tile == 0))
    # The first time's d times h0, unless that time has a reset.
    h0 = tl.zeros_like(state)
    if h0_ptr is not None:
        h0 = tl.load(h0_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
    reaches_h0 = has_first_time & (length > 0)
    if resets_ptr is not None:
        first_time = first_row + (length - 1 if REVERSE else 0)
        first_reset_ptr = resets_ptr + b * stride_rb + first_time.to(tl.int64) * stride_rt
        reaches_h0 &= tl.load(first_reset_ptr, mask=reaches_h0, other=0) == 0
    grad_u += tl.where(reaches_h0, state * h0, 0.0)
    if g_n_ptr is not None:
        g_n = tl.load(g_n_ptr + b * N + offs_n, mask=mask_n).to(tl.float32)
        grad_h0 = tl.where(tiles == 0, g_n, grad_h0)
    tl.store(grad_h0_ptr + b * N + offs_n, grad_h0, mask=channel_mask(offs_n, N, has_first_time))
    terms = tl.cdiv(T, BLOCK_T) if ticket_ptr is not None else 1
    batch = programs_per_tile // tl.cdiv(N, BLOCK_N)
    sum_ptrs = sums_ptr + (tile * batch.to(tl.int64) + b) * N + offs_n
    tl.store(sum_ptrs, grad_u, mask=mask_n)
    tl.store(sum_ptrs + terms * batch.to(tl.int64) * N, tl.sum(sum_b, 1), mask=mask_n)
    if lengths_ptr is not None:
        start, stop = length * 0, padded_length
        if ticket_ptr is not None:
            start = tile * BLOCK_T
            stop = tl.minimum(start + BLOCK_T, padded_length)
        zero_padding(d_ptr, b * 0, length.to(tl.int64), start, stop, offs_n, N, 0, stride_dt)
