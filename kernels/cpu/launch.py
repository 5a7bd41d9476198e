"""Shapes to threads, runs of channels and chunks of time, and the call of a compiled loop.

A call at (1, 1, 256), on a quiet machine: 6 microseconds, where a record of numpy, filled field by
field, and tensors converted without need took 41.
"""

import functools
import math

from . import openmp
from .indexing import pack
from .loops import backward, compiled

BOUNDS = {
    "relu": (0.0, math.inf),
    "identity": (-math.inf, math.inf),
    "hardtanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "tanh": (-1.0, 1.0),
}
# Runs of channels: at most what fits the first-level cache with u and two buffers, at least a few
# cache lines.
_WIDEST, _NARROWEST = 1024, 64
# What is cut in time has so many elements at least, and so many steps in a chunk.
_FOLDED, _LEAST_STEPS = 1 << 18, 64


def run(
    make,
    rows,  # a, h, g: with batch and time strides, or None
    states,  # u, bias [N], h0, h_n [B, N]: contiguous, or None
    sequences,  # lengths, cu_seqlens, resets: tensors or None
    nonlinearity,
    reverse,
    bidirectional,
    chunks,
    grad_clip=None,
):
    """Runs the loop that `make` makes; of the backward, returns the sums [2, B * chunks, N]."""
    a, h, g = rows
    u, bias, h0, h_n = states
    lengths, cu_seqlens, resets = sequences
    all_long = lengths is None and cu_seqlens is None and resets is None
    B, N = h_n.shape
    T, channels, repeats = h.shape[-2], N, 1
    h_b, h_t = g_b, g_t = (0, *h.stride())[-3:-1]  # without a batch dimension its stride is 0
    a_b, a_t = (h_b, h_t) if a is h else (0, *a.stride())[-3:-1]
    if g is not None:
        g_b, g_t = (0, *g.stride())[-3:-1]
    if a_b == h_b == g_b == N and B > 1 and T > 1 and all_long and not bidirectional:
        # Time first, all of one length: one sequence of B * N channels, in longer rows of memory.
        u, bias = u.repeat(B), None if bias is None else bias.repeat(B)
        B, N, repeats = 1, B * N, B
    threads = openmp.size(h.numel())
    directions = 2 if bidirectional else 1
    turn = N // directions
    tanh = nonlinearity == "tanh"
    if tanh and chunks not in (None, 1):
        raise ValueError(f"tanh is not a clamp and cannot be cut in time: chunks={chunks}")
    chunks, moves = 1 if tanh else chunks, g is None and a.data_ptr() != h.data_ptr()
    width, blocks, chunks = _plan(B * directions, T, turn, threads, chunks, moves)
    blocks *= directions
    maps = h_n.new_empty((B, chunks - 1, 5, N)) if chunks > 1 else None
    sums = h_n.new_empty((2, B * chunks * repeats, channels)) if make is backward else None
    if B == 0 or N == 0:
        return sums
    lo, hi = BOUNDS[nonlinearity]
    if all_long:
        told = _NO_SEQUENCES
    else:
        strides = (0, 0) if resets is None else (0, *resets.stride())[-2:]
        told = _address(lengths), _address(cu_seqlens), _address(resets), *strides
    arguments = pack(
        *(B * blocks, blocks, width, chunks, T, N, turn, reverse, tanh, N),
        *(a.data_ptr(), a_b, a_t, h.data_ptr(), h_b, h_t, 0 if g is None else g.data_ptr()),
        *(g_b, g_t, u.data_ptr(), _address(bias), _address(h0), h_n.data_ptr(), *told),
        *(0, 0) if sums is None else (sums[0].data_ptr(), sums[1].data_ptr()),
        *(0 if maps is None else maps.data_ptr(), lo, hi),
        math.inf if grad_clip is None else grad_clip,
    )
    if chunks > 1:
        openmp.run(compiled(make, h.dtype, folding=True), arguments, threads)
    openmp.run(compiled(make, h.dtype), arguments, threads)
    return sums


_NO_SEQUENCES = 0, 0, 0, 0, 0


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(1024)
def _plan(B, T, N, threads, chunks, moves):
    """Width of a run of channels, number of runs, chunks of time.

    One sequence on one thread takes the time 1. Cut into runs of channels, it takes `share` divided
    by the threads, as they read and write the same pages; where channels are so many that a run is
    as long as a page, just that fraction. Cut in time, there are the first chunk and `others`,
    twice as long: each thread folds one and runs one, and to fold costs `fold` of a run.

    At (1, 65536, 256), 2 threads are faster than 1, with runs of channels and with 3 chunks:

        forward, to memory that was asked for just now   1.0   1.4
        forward, to memory that was there                1.0 to 1.3   1.5
        forward, in place                                1.35   1.0
        backward, to memory that was asked for just now  1.15   1.4
        backward, to memory that was there               1.8   1.5

    `moves`: the forward writes to another place than it reads from.
    """
    if B == 0 or N == 0:
        return 1, 0, 1
    blocks = _blocks(B, N, threads)
    if chunks is None:
        chunks = 1
        share, fold = (1.6, 0.5) if moves else (1.3, 1.0)
        best = _rounds(B * blocks, threads) / blocks * (share if blocks > N / _WIDEST else 1)
        if threads > B and B * T * N >= _FOLDED:
            for others in range(2, 2 * threads):
                time = _rounds(B * others, threads) * (1 + fold) / (others + fold)
                if time < 0.999 * best and _LEAST_STEPS * others <= T:
                    best, chunks = time, others + 1
    if chunks > 1:
        blocks = math.ceil(N / _WIDEST)
    return -(-N // blocks), blocks, chunks


def _rounds(tasks, threads):
    return math.ceil(tasks / threads)


def _blocks(B, N, threads):
    """Runs of channels a sequence: few, as memory is best read in long rows, but so many that every
    thread gets about the same."""
    blocks = math.ceil(N / _WIDEST)
    while blocks * _NARROWEST < N:
        items = B * blocks
        if math.ceil(items / threads) * threads <= 1.1 * items:
            break
        blocks += 1
    return math.ceil(N / math.ceil(N / blocks))  # none of them empty
