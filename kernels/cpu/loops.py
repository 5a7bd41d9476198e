"""The recurrence on a CPU, forward and backward: loops compiled by numba.

    forward   h_t = clamp(a_t + b + u * h_{t-1}, lo, hi), or tanh in place of the clamp
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)
              m_t = 1 where lo < h_t < hi, else 0; for tanh 1 - h_t^2
              grad_a = d, grad_h0 = u * d_1, and over batch and time the sums
              grad_u of d_t * h_{t-1}, grad_b of d_t

Shapes: a, h, g (B, T, N), or (total, N) with cu_seqlens; any strides of batch and time, channels
contiguous. h may be a's own memory, grad_a may be g's. Saves nothing: m_t is read off the stored h.
Floor: 2 reads or writes of an element forward (torch.relu has as many) and 3 backward, with 2 to 6
operations.

A work item is a run of channels of one sequence. The loop over channels is the inner one and is
vectorised; the state and u of a run stay in the first-level cache, and all other memory is touched
once, in order. The new state is written to its own small buffer and then copied to h: the compiler
can prove that the buffer overlaps nothing, so that it needs no check, and h may lie on a (0.45 ms
at (32, 1000, 128) against 1.15 ms with the state read from h).

Where time is cut into chunks, an item has one task for each chunk but the first: `fold` makes of
each its map (and runs chunk 0), and then `forward` or `backward` runs the chunks from 1 on, each
from its true start. Where that is unknown, the task of an earlier chunk has gone on to the end.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numba import carray, from_dtype, njit, types
from numba.core import typing

from . import openmp
from .cache import compile_loop
from .chunks import carry, fold_backward, fold_forward, store_end
from .indexing import (
    ARGUMENTS,
    STORED,
    channels,
    clamp,
    extent,
    flush,
    is_reset,
    lead,
    prefetch,
    read,
    row,
    share,
    steps,
    stored,
    time,
)


class _Limits(NamedTuple):
    tiny: np.floating  # the smallest normal number
    most: np.floating  # the largest finite number
    near: np.floating  # relative, what rounding may make of a difference


def _limits(real):
    info = np.finfo(real)
    return _Limits(real(info.tiny), real(info.max), real(1024 * info.eps))


@njit(inline="always")
def _walk_forward(x, b, n0, n, walk, state, bias, lo, hi, tiny, like):
    """The steps of a chunk; state: that in which it starts and, at the end, ends; like: a number as
    a and h have it in memory."""
    begin, length, start, stop, reverse = walk
    zero = type(tiny)(0)
    u = row(x.u, n0, n, zero)
    for i in range(start, stop):
        t = time(begin, length, i, reverse)
        ahead = time(begin, length, min(i + lead(n), stop - 1), reverse)
        prefetch(x.a, b * x.a_b + ahead * x.a_t + n0, n, like)
        prefetch(x.h, b * x.h_b + ahead * x.h_t + n0, n, like)
        if is_reset(x, b, t):
            state[:n] = zero
        a = row(x.a, b * x.a_b + t * x.a_t + n0, n, like)
        if x.tanh:
            for j in range(n):
                state[j] = flush(np.tanh(read(a[j]) + bias[j] + u[j] * state[j]), tiny)
        else:
            for j in range(n):
                state[j] = flush(clamp(read(a[j]) + bias[j] + u[j] * state[j], lo, hi), tiny)
        h = row(x.h, b * x.h_b + t * x.h_t + n0, n, like)
        for j in range(n):
            h[j] = stored(state[j], like)


def forward(real, in_memory, folding):
    zero, like, limits = real(0), in_memory(0), _limits(real)

    def forward(pointer):
        x = carray(pointer, 1)[0]
        lo, hi = real(x.lo), real(x.hi)
        state, end = np.empty(x.width, real), np.empty(x.width, real)
        if folding:
            maps = np.empty((7, x.width), real)
        parts = max(x.chunks - 1, 1)
        first, end_of_share = share(x.items * parts)
        for task in range(first, end_of_share):
            b, n0, n, reverse = channels(x, task // parts)
            begin, length, rows = extent(x, b)
            # The part that folded a chunk then runs it, perhaps from cache.
            chunk = task % parts
            if not folding and chunk == 0:
                chunk = x.chunks - 1
            start, stop = steps(x, length, chunk)
            is_last = not folding and chunk == x.chunks - 1
            bias = row(x.bias, n0, n, zero)
            if chunk == 0:
                if x.h0:
                    h0 = row(x.h0, b * x.states_b + n0, n, zero)
                    for j in range(n):
                        state[j] = h0[j]
                else:
                    state[:n] = zero
            elif folding:
                walk = begin, length, start, stop, reverse
                fold_forward(x, b, n0, n, walk, chunk, maps, lo, hi, limits, like)
                continue
            else:
                bounded = lo > -np.inf
                lowest = lo if bounded else zero
                to_end = carry(x, b, n0, n, chunk, state, end, lowest, bounded, limits)
                is_last = to_end == chunk
                if is_last:
                    stop = length
                elif to_end < chunk:
                    stop = start
            walk = begin, length, start, stop, reverse
            _walk_forward(x, b, n0, n, walk, state, bias, lo, hi, limits.tiny, like)
            if folding:
                store_end(x, b, n0, n, state)
            elif is_last:
                h_n = row(x.h_n, b * x.states_b + n0, n, zero)
                for j in range(n):
                    h_n[j] = state[j]
                _zero_rows(x.h, x.h_b, x.h_t, b, n0, n, length, rows, like)

    return forward


@njit(inline="always")
def _zero_rows(address, stride_b, stride_t, b, n0, n, start, stop, like):
    for t in range(start, stop):
        padding = row(address, b * stride_b + t * stride_t + n0, n, like)
        for j in range(n):
            padding[j] = type(like)(0)


@njit(inline="always")
def _pass_on(n, d, message, sum_u, sum_b, u, previous, clip, tiny):
    """Clips d, adds it to the sums, and makes of it what reaches the step before it."""
    for j in range(n):
        d[j] = flush(clamp(d[j], -clip, clip), tiny)
        sum_u[j] += d[j] * read(previous[j])
        sum_b[j] += d[j]
        message[j] = u[j] * d[j]


@njit(inline="always")
def _walk_backward(x, b, n0, n, walk, d, message, sum_u, sum_b, zeros, lo, hi, clip, tiny, like):
    """The steps of a chunk, counted from the last of the sequence; message: u * d_{t+1}, what
    reaches h_t from later steps."""
    begin, length, start, stop, reverse = walk
    zero, one = type(tiny)(0), type(tiny)(1)
    u = row(x.u, n0, n, zero)
    for i in range(length - 1 - start, length - 1 - stop, -1):
        t = time(begin, length, i, reverse)
        before = time(begin, length, i - 1, reverse)
        ahead = time(begin, length, max(i - lead(n), length - stop), reverse)
        prefetch(x.g, b * x.g_b + ahead * x.g_t + n0, n, like)
        prefetch(x.h, b * x.h_b + ahead * x.h_t + n0, n, like)
        prefetch(x.a, b * x.a_b + ahead * x.a_t + n0, n, like)
        g = row(x.g, b * x.g_b + t * x.g_t + n0, n, like)
        h = row(x.h, b * x.h_b + t * x.h_t + n0, n, like)
        reset = is_reset(x, b, t)
        at_start = reset or i == 0
        previous = zeros if at_start else row(x.h, b * x.h_b + before * x.h_t + n0, n, like)
        if x.tanh:
            for j in range(n):
                state = read(h[j])
                d[j] = (one - state * state) * (read(g[j]) + message[j])
        else:
            for j in range(n):
                state = read(h[j])
                outside = (state <= lo) | (state >= hi)
                total = read(g[j]) + message[j]
                d[j] = zero if outside else total
        if i == 0 and x.h0 and not reset:  # a state, which is wider than numbers of 16 bits
            h0 = row(x.h0, b * x.states_b + n0, n, zero)
            _pass_on(n, d, message, sum_u, sum_b, u, h0, clip, tiny)
        else:
            _pass_on(n, d, message, sum_u, sum_b, u, previous, clip, tiny)
        if reset:
            message[:n] = zero
        a = row(x.a, b * x.a_b + t * x.a_t + n0, n, like)
        for j in range(n):
            a[j] = stored(d[j], like)


def backward(real, in_memory, folding):
    """a is grad_a; grad_u, grad_b (B, chunks, N) have a sum for each chunk of each sequence, to be
    added in fixed order; h_n is the gradient of h_n on the way in, that of h_0 on the way out."""
    zero, like, limits = real(0), in_memory(0), _limits(real)

    def backward(pointer):
        x = carray(pointer, 1)[0]
        lo, hi, clip = real(x.lo), real(x.hi), real(x.clip)
        d, message = np.empty(x.width, real), np.empty(x.width, real)
        sum_u, sum_b = np.empty(x.width, real), np.empty(x.width, real)
        zeros = np.zeros(x.width, in_memory)
        end = np.empty(x.width, real)
        if folding:
            maps = np.empty((7, x.width), real)
        parts = max(x.chunks - 1, 1)
        first, end_of_share = share(x.items * parts)
        for task in range(first, end_of_share):
            b, n0, n, reverse = channels(x, task // parts)
            begin, length, rows = extent(x, b)
            chunk = task % parts
            if not folding and chunk == 0:
                chunk = x.chunks - 1
            start, stop = steps(x, length, chunk)
            is_last = not folding and chunk == x.chunks - 1
            ends = row(x.h_n, b * x.states_b + n0, n, zero)
            if chunk == 0:
                for j in range(n):
                    message[j] = ends[j]
            elif folding:
                walk = begin, length, start, stop, reverse
                fold_backward(x, b, n0, n, walk, chunk, maps, lo, hi, clip, limits, like)
                continue
            else:
                bounded = clip < np.inf
                lowest = -limits.most if bounded else zero
                to_end = carry(x, b, n0, n, chunk, message, end, lowest, bounded, limits)
                is_last = to_end == chunk
                if is_last:
                    stop = length
                elif to_end < chunk:
                    stop = start
            for j in range(n):
                sum_u[j], sum_b[j] = zero, zero
            walk = begin, length, start, stop, reverse
            tiny = limits.tiny
            _walk_backward(
                x, b, n0, n, walk, d, message, sum_u, sum_b, zeros, lo, hi, clip, tiny, like
            )
            place = (b * x.chunks + chunk) * x.N + n0
            grad_u, grad_b = row(x.grad_u, place, n, zero), row(x.grad_b, place, n, zero)
            for j in range(n):
                grad_u[j], grad_b[j] = sum_u[j], sum_b[j]
            if folding:
                store_end(x, b, n0, n, message)
            elif is_last:
                for j in range(n):
                    ends[j] = message[j]
                _zero_rows(x.a, x.a_b, x.a_t, b, n0, n, length, rows, like)

    return backward


@functools.cache
def compiled(make, dtype, folding=False):
    """For rows of the dtype; compiled once and kept on disk, see `cache`."""
    in_memory = STORED[dtype]
    real = np.float64 if dtype == torch.float64 else np.float32
    name = f"{make.__name__}_{str(dtype).removeprefix('torch.')}{'_folding' if folding else ''}"
    signature = typing.signature(types.void, types.CPointer(from_dtype(ARGUMENTS)))
    options = {"fastmath": {"contract"}, "error_model": "numpy"}
    function = make(real, in_memory, folding)
    return openmp.Loop(compile_loop(function, name, signature, **options))
