"""The recurrence on a CPU, forward and backward: loops compiled by numba.

    forward   h_t = clamp(a_t + bias + u * h_{t-1}, lo, hi), or tanh in the place of the clamp
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)
              m_t = 0 where h_t is at a bound, else 1; for tanh m_t = 1 - h_t^2
              grad_a = d, grad_h0 = u * d_1, and the sums over batch and time
              grad_u of d_t * h_{t-1} and grad_bias of d_t

    g is grad_h, c is grad_clip. u * d_{t+1}, the gradient with respect to h_t that comes from later
    steps, is called grad_state. It starts as the gradient of h_n and ends as that of h0.

Shapes: a, h, grad_h, grad_a (B, T, N), or (total, N) with cu_seqlens; u, bias (N,); h0, h_n,
grad_state (B, N); grad_u, grad_bias (B, chunks, N), to be summed over the first two dimensions.
Layout: any strides of batch and time, adjacent channels. h may be the memory of a, and grad_a that
of grad_h.
Saved for the backward: nothing but h, from which m_t is computed.
Floor: 2 reads or writes of an element forward (torch.relu has as many) and 3 backward, with 2 to 6
operations.
Source: Li et al. 2018, arXiv 1803.04831, eq. 4; the clip of each step's gradient is Lasagne's
grad_clipping.

A work item is a block of channels of one sequence. The loop over channels is the inner one and is
vectorised. The state and u of a block stay in the first-level cache, and all other memory is
touched once, in order. The new state is written to a small buffer of its own and then copied to h.
The compiler can prove that the buffer overlaps nothing, so that it needs no check at run time, and
h may be the memory of a: 0.45 ms at (32, 1000, 128), against 1.15 ms with the state read from h.

With several chunks of time two loops run one after the other, and each has a task for every chunk
but one. The first loop runs chunk 0 of a work item and summarizes all later ones but the last; the
second loop runs the chunks from 1 on, each from the state that `propagate` finds. The thread that
summarized a chunk also runs it, while it may still be in cache.
"""

from typing import NamedTuple

import numpy as np
from numba import carray, njit

from .arithmetic import clamp, flush_subnormal, from_float, limits_of, to_float
from .chunks import (
    propagate,
    store_end,
    summarize_backward_chunk,
    summarize_forward_chunk,
    summary_buffers,
)
from .indexing import (
    TimeSteps,
    channels_at,
    channels_of_state,
    chunk_of,
    elements,
    is_reset,
    load_or_zero,
    prefetch,
    prefetch_distance,
    tasks_of_thread,
    zero_padding,
)


class _Gradients(NamedTuple):
    """Buffers (block_size,) of the backward."""

    d: np.ndarray
    grad_state: np.ndarray
    sum_u: np.ndarray
    sum_bias: np.ndarray
    zeros: np.ndarray  # of the element type of h: an h_{t-1} of 0


@njit(inline="always")
def _run_forward(args, chunk, a, h, state, bias, lo, hi, tiny):
    """Computes h at the steps of a chunk; `state` is the state before them and then after them."""
    zero = type(tiny)(0)
    u = elements(args.u, chunk.channel, chunk.count, zero)
    distance = prefetch_distance(chunk)
    for step in range(chunk.start, chunk.stop):
        prefetch(a, chunk, step, distance)
        prefetch(h, chunk, step, distance)
        if is_reset(args, chunk, step):
            state[: chunk.count] = zero
        a_t, h_t = channels_at(a, chunk, step), channels_at(h, chunk, step)
        if args.is_tanh:
            for j in range(chunk.count):
                z = to_float(a_t[j]) + bias[j] + u[j] * state[j]
                state[j] = flush_subnormal(np.tanh(z), tiny)
        else:
            for j in range(chunk.count):
                z = to_float(a_t[j]) + bias[j] + u[j] * state[j]
                state[j] = flush_subnormal(clamp(z, lo, hi), tiny)
        for j in range(chunk.count):
            h_t[j] = from_float(state[j], h.like)


def forward(real, element):
    """The loop that runs a work item's only chunk of time or, of several, all but chunk 0.

    real: the type that the loop computes in. element: the type of the elements of a and h.
    """
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        a = TimeSteps(args.a, args.a_stride_b, args.a_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        state, end = np.empty(args.block_size, real), np.empty(args.block_size, real)
        bias = np.empty(args.block_size, real)
        bounded = lo == lo
        lowest = lo if bounded else real(0)
        first_task, end_task = tasks_of_thread(args)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task, summarizes=False, backward=False)
            load_or_zero(bias, args.bias, chunk.channel, chunk.count)
            runs_to_end = True
            if chunk.index == 0:
                load_or_zero(state, args.h0, chunk.b * args.N + chunk.channel, chunk.count)
            else:
                chunk, runs_to_end = propagate(args, chunk, state, end, lowest, bounded, limits)
            _run_forward(args, chunk, a, h, state, bias, lo, hi, limits.tiny)
            if runs_to_end:
                h_n = channels_of_state(args, args.h_n, chunk, real(0))
                for j in range(chunk.count):
                    h_n[j] = state[j]
                zero_padding(args, h, chunk)

    return loop


def forward_summaries(real, element):
    """The loop that comes before `forward` where there are several chunks of time: it runs chunk 0
    of each work item and summarizes all later chunks but the last."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        a = TimeSteps(args.a, args.a_stride_b, args.a_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        state, bias = np.empty(args.block_size, real), np.empty(args.block_size, real)
        summary = summary_buffers(args.block_size, real(0))
        first_task, end_task = tasks_of_thread(args)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task, summarizes=True, backward=False)
            load_or_zero(bias, args.bias, chunk.channel, chunk.count)
            if chunk.index == 0:
                load_or_zero(state, args.h0, chunk.b * args.N + chunk.channel, chunk.count)
                _run_forward(args, chunk, a, h, state, bias, lo, hi, limits.tiny)
                store_end(args, chunk, state)
            else:
                summarize_forward_chunk(args, chunk, a, bias, summary, lo, hi, limits)

    return loop


@njit(forceinline=True)
def _step_backward(count, buffers, u, previous, clip, tiny):
    """Clips d_t, adds to the sums over time, and sets grad_state to u * d_t.

    previous: h_{t-1}. On entry d is d_t before the clip.
    """
    d = buffers.d
    for j in range(count):
        d[j] = flush_subnormal(clamp(d[j], -clip, clip), tiny)
        buffers.sum_u[j] += d[j] * to_float(previous[j])
        buffers.sum_bias[j] += d[j]
        buffers.grad_state[j] = u[j] * d[j]


@njit(inline="always")
def _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, tiny):
    """Computes grad_a at the steps of a chunk, and stores the sums for grad_u and grad_bias.

    `buffers.grad_state` is the gradient with respect to h from outside the chunk: on entry that
    from later in time, on exit that for earlier in time.
    """
    zero, one, clip = type(tiny)(0), type(tiny)(1), type(tiny)(args.grad_clip)
    d, grad_state, sum_u, sum_bias, zeros = buffers
    n = chunk.count
    u = elements(args.u, chunk.channel, n, zero)
    for j in range(n):
        sum_u[j], sum_bias[j] = zero, zero
    distance = prefetch_distance(chunk)
    for step in range(chunk.start, chunk.stop):
        prefetch(grad_h, chunk, step, distance)
        prefetch(h, chunk, step, distance)
        prefetch(grad_a, chunk, step, distance)
        g_t, h_t = channels_at(grad_h, chunk, step), channels_at(h, chunk, step)
        reset, is_first_in_time = is_reset(args, chunk, step), step == chunk.length - 1
        if args.is_tanh:
            for j in range(n):
                state = to_float(h_t[j])
                d[j] = (one - state * state) * (to_float(g_t[j]) + grad_state[j])
        else:
            for j in range(n):
                state = to_float(h_t[j])
                at_bound = (state <= lo) | (state >= hi)
                total = to_float(g_t[j]) + grad_state[j]
                d[j] = zero if at_bound else total
        if is_first_in_time and args.h0 and not reset:
            # h0 has more digits than h where h is of 16 bits.
            h0 = channels_of_state(args, args.h0, chunk, zero)
            _step_backward(n, buffers, u, h0, clip, tiny)
        else:
            starts_from_zero = is_first_in_time or reset
            previous = zeros if starts_from_zero else channels_at(h, chunk, step + 1)
            _step_backward(n, buffers, u, previous, clip, tiny)
        if reset:
            grad_state[:n] = zero
        grad_a_t = channels_at(grad_a, chunk, step)
        for j in range(n):
            grad_a_t[j] = from_float(d[j], grad_a.like)
    first = (chunk.b * args.chunks + chunk.index) * args.N + chunk.channel
    grad_u = elements(args.grad_u, first, n, zero)
    grad_bias = elements(args.grad_bias, first, n, zero)
    for j in range(n):
        grad_u[j], grad_bias[j] = sum_u[j], sum_bias[j]


@njit(forceinline=True)
def _gradient_buffers(size, zero, like):
    real = type(zero)
    return _Gradients(
        np.empty(size, real),
        np.empty(size, real),
        np.empty(size, real),
        np.empty(size, real),
        np.zeros(size, type(like)),
    )


def backward(real, element):
    """As `forward`, in the opposite order of time."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        grad_h = TimeSteps(args.grad_h, args.grad_h_stride_b, args.grad_h_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        grad_a = TimeSteps(args.grad_a, args.grad_a_stride_b, args.grad_a_stride_t, like)
        buffers = _gradient_buffers(args.block_size, real(0), like)
        end = np.empty(args.block_size, real)
        bounded = args.grad_clip < np.inf
        lowest = -limits.largest if bounded else real(0)
        first_task, end_task = tasks_of_thread(args)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task, summarizes=False, backward=True)
            grad_state = channels_of_state(args, args.grad_state, chunk, real(0))
            runs_to_end = True
            if chunk.index == 0:
                for j in range(chunk.count):
                    buffers.grad_state[j] = grad_state[j]
            else:
                state = buffers.grad_state
                chunk, runs_to_end = propagate(args, chunk, state, end, lowest, bounded, limits)
            _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, limits.tiny)
            if runs_to_end:
                for j in range(chunk.count):
                    grad_state[j] = buffers.grad_state[j]
                zero_padding(args, grad_a, chunk)

    return loop


def backward_summaries(real, element):
    """As `forward_summaries`, in the opposite order of time."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        grad_h = TimeSteps(args.grad_h, args.grad_h_stride_b, args.grad_h_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        grad_a = TimeSteps(args.grad_a, args.grad_a_stride_b, args.grad_a_stride_t, like)
        buffers = _gradient_buffers(args.block_size, real(0), like)
        summary = summary_buffers(args.block_size, real(0))
        first_task, end_task = tasks_of_thread(args)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task, summarizes=True, backward=True)
            if chunk.index == 0:
                grad_state = channels_of_state(args, args.grad_state, chunk, real(0))
                for j in range(chunk.count):
                    buffers.grad_state[j] = grad_state[j]
                _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, limits.tiny)
                store_end(args, chunk, buffers.grad_state)
            else:
                summarize_backward_chunk(args, chunk, grad_h, h, summary, lo, hi, limits)

    return loop
