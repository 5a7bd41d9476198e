"""The recurrence on a CPU, forward and backward: loops compiled by numba.

    forward   h_t = clamp(a_t + bias + u * h_{t-1}, lo, hi), or tanh in the place of the clamp
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)
              m_t = 1 where lo < h_t < hi, else 0; for tanh m_t = 1 - h_t^2
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

import functools
from typing import NamedTuple

import numpy as np
import torch
from numba import carray, from_dtype, njit, types
from numba.core import typing

from . import openmp
from .arithmetic import ELEMENT_TYPES, clamp, flush_subnormal, from_float, limits_of, to_float
from .cache import compile_loop
from .chunks import (
    propagate,
    store_end,
    summarize_backward_chunk,
    summarize_forward_chunk,
    summary_buffers,
)
from .indexing import (
    Arguments,
    TimeSteps,
    channels_at,
    channels_of_state,
    chunk_of,
    elements,
    is_reset,
    prefetch,
    range_of_thread,
)


class _Gradients(NamedTuple):
    """Buffers (block_size,) of the backward."""

    d: np.ndarray
    grad_state: np.ndarray
    sum_u: np.ndarray
    sum_bias: np.ndarray
    zeros: np.ndarray  # of the element type of h


@njit(forceinline=True)
def _load_or_zero(buffer, address, first, count):
    """Copies `count` elements from the `first` one at `address`, or writes 0 if there is none."""
    if address:
        given = elements(address, first, count, buffer[0])
        for j in range(count):
            buffer[j] = given[j]
    else:
        for j in range(count):
            buffer[j] = 0


@njit(forceinline=True)
def _zero_padding(args, tensor, chunk):
    """Writes 0 to the time steps of a padded sequence that lie past its length."""
    end = args.T if args.lengths else chunk.length
    for t in range(chunk.length, end):
        first = chunk.b * tensor.stride_b + t * tensor.stride_t + chunk.channel
        padding = elements(tensor.address, first, chunk.count, tensor.like)
        for j in range(chunk.count):
            padding[j] = 0


@njit(inline="always")
def _run_forward(args, chunk, a, h, state, bias, lo, hi, tiny):
    """Computes h at the steps of a chunk; `state` is the state before them and then after them."""
    zero = type(tiny)(0)
    u = elements(args.u, chunk.channel, chunk.count, zero)
    for step in range(chunk.start, chunk.stop):
        prefetch(a, chunk, step)
        prefetch(h, chunk, step)
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
    """Of element type `element`, computed in `real`: runs all chunks but a first one of several."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        a = TimeSteps(args.a, args.a_stride_b, args.a_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        state, end = np.empty(args.block_size, real), np.empty(args.block_size, real)
        bias = np.empty(args.block_size, real)
        bounded = lo > -np.inf
        lowest = lo if bounded else real(0)
        tasks_of_item = max(args.chunks - 1, 1)
        first_task, end_task = range_of_thread(args.work_items * tasks_of_item)
        for task in range(first_task, end_task):
            index = task % tasks_of_item
            if index == 0:  # chunk 0 has been run, and the last one has no task of its own
                index = args.chunks - 1
            chunk = chunk_of(args, task // tasks_of_item, index, backward=False)
            _load_or_zero(bias, args.bias, chunk.channel, chunk.count)
            runs_to_end = True
            if index == 0:
                _load_or_zero(state, args.h0, chunk.b * args.N + chunk.channel, chunk.count)
            else:
                chunk, runs_to_end = propagate(args, chunk, state, end, lowest, bounded, limits)
            _run_forward(args, chunk, a, h, state, bias, lo, hi, limits.tiny)
            if runs_to_end:
                h_n = channels_of_state(args, args.h_n, chunk, real(0))
                for j in range(chunk.count):
                    h_n[j] = state[j]
                _zero_padding(args, h, chunk)

    return loop


def forward_summaries(real, element):
    """Runs the first chunk of several and summarizes the others but the last."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        a = TimeSteps(args.a, args.a_stride_b, args.a_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        state, bias = np.empty(args.block_size, real), np.empty(args.block_size, real)
        summary = summary_buffers(args.block_size, real(0))
        tasks_of_item = args.chunks - 1
        first_task, end_task = range_of_thread(args.work_items * tasks_of_item)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task // tasks_of_item, task % tasks_of_item, backward=False)
            _load_or_zero(bias, args.bias, chunk.channel, chunk.count)
            if chunk.index == 0:
                _load_or_zero(state, args.h0, chunk.b * args.N + chunk.channel, chunk.count)
                _run_forward(args, chunk, a, h, state, bias, lo, hi, limits.tiny)
                store_end(args, chunk, state)
            else:
                summarize_forward_chunk(args, chunk, a, bias, summary, lo, hi, limits)

    return loop


@njit(forceinline=True)
def _step_backward(count, buffers, u, previous, clip, tiny):
    """Clips d_t, adds it to the sums, and makes grad_state that of the step before t in time."""
    d = buffers.d
    for j in range(count):
        d[j] = flush_subnormal(clamp(d[j], -clip, clip), tiny)
        buffers.sum_u[j] += d[j] * to_float(previous[j])
        buffers.sum_bias[j] += d[j]
        buffers.grad_state[j] = u[j] * d[j]


@njit(inline="always")
def _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, tiny):
    """Computes d at the steps of a chunk and stores it in grad_a, and its sums over the chunk.

    `buffers.grad_state` is that of the chunk's first step and then that of the step after its last.
    """
    zero, one, clip = type(tiny)(0), type(tiny)(1), type(tiny)(args.grad_clip)
    d, grad_state, sum_u, sum_bias, zeros = buffers
    n = chunk.count
    u = elements(args.u, chunk.channel, n, zero)
    for j in range(n):
        sum_u[j], sum_bias[j] = zero, zero
    for step in range(chunk.start, chunk.stop):
        prefetch(grad_h, chunk, step)
        prefetch(h, chunk, step)
        prefetch(grad_a, chunk, step)
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
            starts = is_first_in_time or reset
            previous = zeros if starts else channels_at(h, chunk, step + 1)
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
    """As `forward`, from a sequence's last step in time to its first."""
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
        tasks_of_item = max(args.chunks - 1, 1)
        first_task, end_task = range_of_thread(args.work_items * tasks_of_item)
        for task in range(first_task, end_task):
            index = task % tasks_of_item
            if index == 0:  # chunk 0 has been run, and the last one has no task of its own
                index = args.chunks - 1
            chunk = chunk_of(args, task // tasks_of_item, index, backward=True)
            grad_state = channels_of_state(args, args.grad_state, chunk, real(0))
            runs_to_end = True
            if index == 0:
                for j in range(chunk.count):
                    buffers.grad_state[j] = grad_state[j]
            else:
                state = buffers.grad_state
                chunk, runs_to_end = propagate(args, chunk, state, end, lowest, bounded, limits)
            _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, limits.tiny)
            if runs_to_end:
                for j in range(chunk.count):
                    grad_state[j] = buffers.grad_state[j]
                _zero_padding(args, grad_a, chunk)

    return loop


def backward_summaries(real, element):
    """As `forward_summaries`, from a sequence's last step in time to its first."""
    like, limits = element(0), limits_of(real)

    def loop(pointer):
        args = carray(pointer, 1)[0]
        lo, hi = real(args.lo), real(args.hi)
        grad_h = TimeSteps(args.grad_h, args.grad_h_stride_b, args.grad_h_stride_t, like)
        h = TimeSteps(args.h, args.h_stride_b, args.h_stride_t, like)
        grad_a = TimeSteps(args.grad_a, args.grad_a_stride_b, args.grad_a_stride_t, like)
        buffers = _gradient_buffers(args.block_size, real(0), like)
        summary = summary_buffers(args.block_size, real(0))
        tasks_of_item = args.chunks - 1
        first_task, end_task = range_of_thread(args.work_items * tasks_of_item)
        for task in range(first_task, end_task):
            chunk = chunk_of(args, task // tasks_of_item, task % tasks_of_item, backward=True)
            if chunk.index == 0:
                grad_state = channels_of_state(args, args.grad_state, chunk, real(0))
                for j in range(chunk.count):
                    buffers.grad_state[j] = grad_state[j]
                _run_backward(args, chunk, grad_h, h, grad_a, buffers, lo, hi, limits.tiny)
                store_end(args, chunk, buffers.grad_state)
            else:
                summarize_backward_chunk(args, chunk, grad_h, h, summary, lo, hi, limits)

    return loop


@functools.cache
def compiled(make, dtype):
    """The loop that `make` makes for tensors of a dtype, compiled once and kept on disk."""
    real = np.float64 if dtype == torch.float64 else np.float32
    name = f"{make.__name__}_{str(dtype).removeprefix('torch.')}"
    signature = typing.signature(types.void, types.CPointer(from_dtype(np.dtype(Arguments))))
    options = {"fastmath": {"contract"}, "error_model": "numpy"}
    return openmp.Loop(compile_loop(make(real, ELEMENT_TYPES[dtype]), name, signature, **options))
