"""The scan in registers: a lane's consecutive time steps as columns of an accumulator.

In the accumulator of a matrix product [channels, time] a row lies in LANES lanes of a warp, each of
which holds RUN neighbouring columns in turn: NVIDIA's mma and wgmma 4 lanes and 2 columns, AMD's
32 x 32 mfma 2 and 4, tcgen05 a row in one lane. Where time steps are loaded into the columns in the
order of `step_of_column`, each lane holds R = BLOCK_T / LANES consecutive steps, and the recurrence
is register arithmetic. `reshape`, `permute`, `split` and `join` give registers other names here, no
more. On a device with another layout the result is the same, at the cost of an exchange.
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
    power,
    step,
    stopped,
)


@triton.jit
def step_of_column(BLOCK_T: tl.constexpr, LANES: tl.constexpr, RUN: tl.constexpr):
    """[BLOCK_T]: the step of the tile that each column of the accumulator holds."""
    column = tl.arange(0, BLOCK_T)
    lane = column // RUN % LANES
    return lane * (BLOCK_T // LANES) + column // (RUN * LANES) * RUN + column % RUN


@triton.jit
def columns(x, LEVELS: tl.constexpr):
    """[N, LANES, R] as R tensors [N, LANES], in order; R = 2**LEVELS."""
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
def in_runs(tile, LANES: tl.constexpr, RUN: tl.constexpr, LEVELS: tl.constexpr):
    """The columns of an accumulator [N, BLOCK_T] as R tensors [N, LANES]: step m of every lane."""
    R: tl.constexpr = tile.shape[1] // LANES
    x = tl.permute(tl.reshape(tile, [tile.shape[0], R // RUN, LANES, RUN]), [0, 2, 1, 3])
    return columns(tl.reshape(x, [tile.shape[0], LANES, R]), LEVELS)


@triton.jit
def together(x, y):
    """Both tiles in one layout, so that their columns need no exchange between lanes."""
    return tl.split(tl.join(x, y))


@triton.jit
def in_order(columns, dtype: tl.constexpr, LEVELS: tl.constexpr):
    """The steps of every lane, R tensors [N, LANES], as rows of time [BLOCK_T, N]."""
    xs = (tl.reshape(columns[0], [columns[0].shape[0], columns[0].shape[1], 1]),)
    for m in tl.static_range(1, len(columns)):
        x = tl.reshape(columns[m], [columns[m].shape[0], columns[m].shape[1], 1])
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
def falls_or_grows(u, R: tl.constexpr):
    """Whether a u of the program [N] is negative, and whether one makes runs of R steps grow; of
    both, that alone."""
    grows = tl.abs(u) > growth_limit(tl.full([], R, tl.int32), u.dtype)
    kind = tl.max(tl.where(grows, 2, tl.where(u < 0.0, 1, 0)), 0)
    return kind == 1, kind == 2


@triton.jit
def fold_steps(a, cut, u, falls, known, state, lo, hi, LEVELS: tl.constexpr):
    """R steps p = a[m] of every lane as one map; where cut[m], a step forgets what was before.

    falls: whether a u of the program is negative; where one grows, this is not said, and the map is
    not to be used. known: the lanes whose start is `state`, which may lie outside of the bounds, as
    a given h0 may; or None.
    """
    P, Q, E0, E1 = identity(u, lo, hi)
    if known is not None:
        P, Q, E0, E1 = constant(known, state, P, Q, E0, E1)
    if cut is not None:
        for m in tl.static_range(len(a)):
            P, Q, E0, E1 = constant(cut[m] != 0.0, 0.0, P, Q, E0, E1)
            P, Q, E0, E1 = append(a[m], u, P, Q, E0, E1, lo, hi)
        P, Q, E0, E1 = finish(P, Q, E0, E1, u, False, lo, hi)
    else:
        for m in tl.static_range(len(a)):
            P, _, E0, unused = append(a[m], u, P, Q, E0, E1, lo, hi)
            if hi is not None:
                E1 = unused
        Q = power(u, LEVELS)
        if known is not None:
            Q = tl.where(known, float("nan"), Q)
        if lo is None or hi is not None:
            P, _, _, _ = finish(P, Q, E0, E1, u, False, lo, hi)
        # Only a falling map has an upper bound, and mostly no channel of a program falls.
        elif falls:
            for m in tl.static_range(len(a)):
                E1 = step(a[m], u, E1, lo, hi)
            P, _, _, E1 = finish(P, Q, E0, E1, u, False, lo, hi)
        else:
            P, _, _, E1 = finish(P, Q, E0, E1, u, False, lo, hi, FALLS=False)
    return P, Q, E0, E1


@triton.jit
def fold_steps_back(g, h, cut, u, lo, hi, LO: tl.constexpr, HI: tl.constexpr, LEVELS: tl.constexpr):
    """R steps of the backward of every lane as one map.

    g: the gradients that arrive. h: the outputs, whose bounds LO and HI stop gradients. Where
    cut[m], a step sends none on.
    """
    P, Q, E0, E1 = identity(u, lo, hi)
    forgets = Q == 0.0
    for m in tl.static_range(len(g)):
        killed = stopped(h[m], LO, HI)
        if cut is not None:
            # With resets more has to be kept; this form needs fewer registers.
            P, Q, E0, E1 = append(g[m], u, P, Q, E0, E1, lo, hi)
            P, Q, E0, E1 = constant(killed | (cut[m] != 0.0), 0.0, P, Q, E0, E1)
        else:
            P, _, E0, E1 = append(g[m], u, P, Q, E0, E1, lo, hi)
            forgets |= killed
            # A run that forgets its start is told by its bounds, which are equal, or has none.
            if lo is None:
                P = tl.where(killed, 0.0, P)
            else:
                E0, E1 = tl.where(killed, 0.0, E0), tl.where(killed, 0.0, E1)
    if cut is None:
        Q = tl.where(forgets, float("nan"), power(u, LEVELS))
    return finish(P, Q, E0, E1, u, False, lo, hi)


@triton.jit
def lanes_in_order(
    P, Q, E0, E1, state, BOUNDED: tl.constexpr, FORGETS: tl.constexpr
):  # fmt: skip
    """[N, LANES], the state in which each lane's run starts, and [N], that after the last."""
    LANES: tl.constexpr = P.shape[1]
    lane = tl.arange(0, LANES)[None, :]
    start = tl.broadcast_to(state[:, None], P.shape)
    for e in tl.static_range(LANES):
        end = apply(P, Q, E0, E1, start, BOUNDED, FORGETS=FORGETS)
        state = tl.sum(tl.where(lane == e, end, tl.zeros_like(end)), 1)
        start = tl.where(lane > e, state[:, None], start)
    return start, state


@triton.jit
def lanes_one_by_one(
    p, h, cut, u, state, lo, hi, LO: tl.constexpr, HI: tl.constexpr
):  # fmt: skip
    """As `lanes_in_order`, of maps that grow so fast that they are of no use: the steps themselves,
    of one lane after the other. h: as in `fold_steps_back`; None in the forward."""
    LANES: tl.constexpr = u.shape[1]
    lane = tl.arange(0, LANES)[None, :]
    start = tl.broadcast_to(state[:, None], u.shape)
    # The grid has one dimension. The compiler does not know, and so it does not unroll the loop.
    for e in range(tl.num_programs(1) * LANES):
        s = start
        for m in tl.static_range(len(p)):
            if h is None and cut is not None:
                s = tl.where(cut[m] != 0.0, 0.0, s)
            s = step(p[m], u, s, lo, hi)
            if h is not None:
                killed = stopped(h[m], LO, HI)
                if cut is not None:
                    killed |= cut[m] != 0.0
                s = tl.where(killed, 0.0, s)
        state = tl.sum(tl.where(lane == e, s, tl.zeros_like(s)), 1)
        start = tl.where(lane > e, state[:, None], start)
    return start, state
