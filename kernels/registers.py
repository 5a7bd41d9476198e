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

from .clamped_affine import append, apply, constant, finish, identity, step


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
def fold_steps(a, cut, u, falls, outside, lo, hi, LEVELS: tl.constexpr):
    """R steps p = a[m] of every lane as one map; where cut[m], a step forgets what was before.

    `outside` is a state that may lie outside of the bounds, as a given h0 may, or None.
    """
    P, Q, E0, E1 = identity(u, lo, hi)
    if outside is not None and lo is not None:
        E0 = tl.minimum(E0, outside)
        E1 = tl.maximum(E1, outside)
    if cut is not None:
        for m in tl.static_range(len(a)):
            P, Q, E0, E1 = constant(cut[m] != 0.0, 0.0, P, Q, E0, E1)
            P, Q, E0, E1 = append(a[m], u, P, Q, E0, E1, lo, hi)
    else:
        for m in tl.static_range(len(a)):
            P, _, E0, unused = append(a[m], u, P, Q, E0, E1, lo, hi)
            if hi is not None:
                E1 = unused
        if lo is not None and hi is None:  # noqa: SIM102
            # Only a falling map has an upper bound, and mostly no channel of a program falls.
            if falls:  # a tensor: no `and`
                for m in tl.static_range(len(a)):
                    E1 = step(a[m], u, E1, lo, hi)
        Q = u
        for _ in tl.static_range(LEVELS):
            Q = Q * Q
    return finish(P, Q, E0, E1, u, lo, hi)


@triton.jit
def lanes_in_order(P, Q, E0, E1, state, BOUNDED: tl.constexpr):
    """[N, LANES], the state in which each lane's run starts, and [N], that after the last."""
    LANES: tl.constexpr = P.shape[1]
    lane = tl.arange(0, LANES)[None, :]
    start = tl.broadcast_to(state[:, None], P.shape)
    for e in tl.static_range(LANES):
        end = apply(P, Q, E0, E1, start, BOUNDED)
        state = tl.sum(tl.where(lane == e, end, 0.0), 1)
        start = tl.where(lane > e, state[:, None], start)
    return start, state
