"""The recurrence inside a tile whose time steps lie in the registers of a few lanes.

The product of a tile is an accumulator [N, BLOCK_T]: channels as rows, time as columns (N stands
for BLOCK_N here). The hardware spreads a row over LANES lanes of a warp; the first lane holds
ADJACENT neighbouring columns, the next lane the next ones, and so on in turn: 4 lanes and 2 columns
for mma and wgmma of NVIDIA, 2 and 4 for the 32 x 32 mfma of AMD; with tcgen05 one lane holds a row.

`step_of_column` tells which time step to load into which column, so that each lane holds R =
BLOCK_T / LANES consecutive steps. The recurrence then is arithmetic within a lane, but for LANES
states that are handed from lane to lane: each lane summarizes its R steps as one map, the maps are
applied lane after lane, and each lane takes its steps again from the right state.

`reshape`, `permute`, `split` and `join` only rename registers here. On a device with another layout
the result is the same, at the cost of an exchange between lanes.
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
    power,
    step,
)


@triton.jit
def step_of_column(BLOCK_T: tl.constexpr, LANES: tl.constexpr, ADJACENT: tl.constexpr):
    """[BLOCK_T]: the step of the tile, 0 to BLOCK_T - 1, that each column holds."""
    column = tl.arange(0, BLOCK_T)
    lane = column // ADJACENT % LANES
    turn = column // (ADJACENT * LANES)
    return lane * (BLOCK_T // LANES) + turn * ADJACENT + column % ADJACENT


@triton.jit
def split_columns(x, LEVELS: tl.constexpr):
    """[N, LANES, R] as a tuple of R tensors [N, LANES], in order; R = 2**LEVELS."""
    xs = (x,)
    for _ in tl.static_range(LEVELS):
        ys = ()
        for m in tl.static_range(len(xs)):
            halves = tl.reshape(xs[m], [x.shape[0], x.shape[1], 2, xs[m].shape[2] // 2])
            first, second = tl.split(tl.permute(halves, [0, 1, 3, 2]))
            ys = ys + (first, second)  # noqa: RUF005
        xs = ys
    ys = ()
    for m in tl.static_range(len(xs)):
        ys = ys + (tl.reshape(xs[m], [x.shape[0], x.shape[1]]),)  # noqa: RUF005
    return ys


@triton.jit
def split_steps(tile, LANES: tl.constexpr, ADJACENT: tl.constexpr, LEVELS: tl.constexpr):
    """A tile [N, BLOCK_T] as a tuple of R tensors [N, LANES]; the m-th is step m of every lane."""
    R: tl.constexpr = tile.shape[1] // LANES
    x = tl.reshape(tile, [tile.shape[0], R // ADJACENT, LANES, ADJACENT])
    x = tl.permute(x, [0, 2, 1, 3])
    return split_columns(tl.reshape(x, [tile.shape[0], LANES, R]), LEVELS)


@triton.jit
def join_steps(steps, dtype: tl.constexpr, LEVELS: tl.constexpr):
    """The inverse of `split_steps`, transposed: [BLOCK_T, N], in the order of time, as dtype."""
    xs = (tl.reshape(steps[0], [steps[0].shape[0], steps[0].shape[1], 1]),)
    for m in tl.static_range(1, len(steps)):
        x = tl.reshape(steps[m], [steps[m].shape[0], steps[m].shape[1], 1])
        xs = xs + (x,)  # noqa: RUF005
    for _ in tl.static_range(LEVELS):
        ys = ()
        for m in tl.static_range(len(xs) // 2):
            y = tl.permute(tl.join(xs[2 * m], xs[2 * m + 1]), [0, 1, 3, 2])
            ys = ys + (tl.reshape(y, [y.shape[0], y.shape[1], 2 * y.shape[3]]),)  # noqa: RUF005
        xs = ys
    tile = tl.reshape(xs[0], [xs[0].shape[0], xs[0].shape[1] * xs[0].shape[2]])
    return tl.trans(tile.to(dtype))


@triton.jit
def same_layout(x, y):
    """Both tiles in one layout, so that operations on both need no exchange between lanes."""
    return tl.split(tl.join(x, y))


@triton.jit
def classify_u(u, R: tl.constexpr):
    """Two scalars for the u [N] of a program, of which at most one is True.

    any_growing: some u makes segments of R steps grow. any_negative_u: none does, and some u is
    negative.
    """
    grows = tl.abs(u) > growing_above(tl.full([], R, tl.int32), u.dtype)
    kind = tl.max(tl.where(grows, 2, tl.where(u < 0.0, 1, 0)), 0)
    return kind == 1, kind == 2


@triton.jit
def summarize_steps(
    a, reset, u, any_negative_u, given, state, lo, hi, LEVELS: tl.constexpr
):  # fmt: skip
    """Every lane's R steps h = clamp(a[m] + u*h, lo, hi) as one segment (P, Q, E0, E1) [N, LANES].

    a: R tensors [N, LANES]. reset: the same, not 0 where a step's h_{t-1} counts as 0; or None.
    any_negative_u: as `classify_u` returns it; where a segment grows, the result is not to be used.
    given: [1, LANES], the lanes whose start `state` is known, so that their segment is a constant
    map; or None. A lane that starts in h0 has to be one: h0 may lie outside of the bounds.
    """
    P, Q, E0, E1 = identity(u, lo, hi)
    if given is not None:
        P, Q, E0, E1 = constant_where(given, state, P, Q, E0, E1)
    if reset is not None:
        for m in tl.static_range(len(a)):
            P, Q, E0, E1 = constant_where(reset[m] != 0.0, 0.0, P, Q, E0, E1)
            P, Q, E0, E1 = append(a[m], u, P, Q, E0, E1, lo, hi)
        P, Q, E0, E1 = finish(P, Q, E0, E1, u, False, lo, hi)
    else:
        for m in tl.static_range(len(a)):
            P, _, E0, upper = append(a[m], u, P, Q, E0, E1, lo, hi)
            if hi is not None:
                E1 = upper
        Q = power(u, LEVELS)
        if given is not None:
            Q = tl.where(given, float("nan"), Q)
        if lo is None or hi is not None:
            P, _, _, _ = finish(P, Q, E0, E1, u, False, lo, hi)
        # With relu E1 is needed where u < 0 only, and mostly no u of a program is.
        elif any_negative_u:
            for m in tl.static_range(len(a)):
                E1 = step(a[m], u, E1, lo, hi)
            P, _, _, E1 = finish(P, Q, E0, E1, u, False, lo, hi)
        else:
            P, _, _, E1 = finish(P, Q, E0, E1, u, False, lo, hi, ANY_NEGATIVE_U=False)
    return P, Q, E0, E1


@triton.jit
def summarize_steps_backward(
    g, h, reset, u, lo, hi, LO: tl.constexpr, HI: tl.constexpr, LEVELS: tl.constexpr
):  # fmt: skip
    """Every lane's R steps of the backward as one segment (P, Q, E0, E1) [N, LANES].

    A step is d = clamp(g[m] + u*d, lo, hi), and d = 0 where the output h[m] is at its bound LO or
    HI. g, h: R tensors [N, LANES]; g is the gradient of h. lo, hi: bounds of d, by the clip. reset:
    R tensors, not 0 where a step passes no gradient on to the step before it in time; or None.
    """
    P, Q, E0, E1 = identity(u, lo, hi)
    is_constant = Q == 0.0  # nowhere so far
    for m in tl.static_range(len(g)):
        blocked = at_bound(h[m], LO, HI)
        if reset is not None:
            # With resets more values are alive at once; this form needs fewer registers.
            P, Q, E0, E1 = append(g[m], u, P, Q, E0, E1, lo, hi)
            P, Q, E0, E1 = constant_where(blocked | (reset[m] != 0.0), 0.0, P, Q, E0, E1)
        else:
            P, _, E0, E1 = append(g[m], u, P, Q, E0, E1, lo, hi)
            is_constant |= blocked
            # With bounds a constant map is found by E0 = E1, and its P need not be right.
            if lo is None:
                P = tl.where(blocked, 0.0, P)
            else:
                E0, E1 = tl.where(blocked, 0.0, E0), tl.where(blocked, 0.0, E1)
    if reset is None:
        Q = tl.where(is_constant, float("nan"), power(u, LEVELS))
    return finish(P, Q, E0, E1, u, False, lo, hi)


@triton.jit
def propagate_lanes(
    P, Q, E0, E1, state, BOUNDED: tl.constexpr, HAS_CONSTANTS: tl.constexpr
):  # fmt: skip
    """Applies the lanes' segments [N, LANES] to the state [N] before the tile, lane after lane.

    Returns the state in which each lane's steps start, [N, LANES], and that after the tile, [N].
    """
    LANES: tl.constexpr = P.shape[1]
    lane = tl.arange(0, LANES)[None, :]
    start = tl.broadcast_to(state[:, None], P.shape)
    for e in tl.static_range(LANES):
        end = apply(P, Q, E0, E1, start, BOUNDED, HAS_CONSTANTS=HAS_CONSTANTS)
        state = tl.sum(tl.where(lane == e, end, tl.zeros_like(end)), 1)
        start = tl.where(lane > e, state[:, None], start)
    return start, state


@triton.jit
def propagate_lanes_by_steps(
    p, h, reset, u, state, lo, hi, LO: tl.constexpr, HI: tl.constexpr
):  # fmt: skip
    """What `propagate_lanes` returns, for lanes whose segments grow: every lane takes its R steps,
    after the lanes before it.

    p, h: in the forward a of `summarize_steps` and None; in the backward g and h of
    `summarize_steps_backward`.
    """
    LANES: tl.constexpr = u.shape[1]
    lane = tl.arange(0, LANES)[None, :]
    start = tl.broadcast_to(state[:, None], u.shape)
    # num_programs(1) is 1. The compiler does not know that, and so does not unroll the loop.
    for e in range(tl.num_programs(1) * LANES):
        s = start
        for m in tl.static_range(len(p)):
            if h is None and reset is not None:
                s = tl.where(reset[m] != 0.0, 0.0, s)
            s = step(p[m], u, s, lo, hi)
            if h is not None:
                blocked = at_bound(h[m], LO, HI)
                if reset is not None:
                    blocked |= reset[m] != 0.0
                s = tl.where(blocked, 0.0, s)
        state = tl.sum(tl.where(lane == e, s, tl.zeros_like(s)), 1)
        start = tl.where(lane > e, state[:, None], start)
    return start, state
