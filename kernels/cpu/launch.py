"""Starts a compiled loop: turns tensors and options into the `Arguments` of the loop.

A call at (1, 1, 256) spends most of its time here and not in the loop: each Python object counts.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from numba import from_dtype, types
from numba.core import typing
from torch import Tensor

from ..tensors import BOUNDS
from . import openmp
from .arithmetic import ELEMENT_TYPES
from .cache import compile_loop
from .indexing import Arguments
from .loops import backward, backward_summaries, forward, forward_summaries
from .plan import plan


class Options(NamedTuple):
    nonlinearity: str
    reverse: bool
    bidirectional: bool = False  # the second half of the channels runs opposite in time
    grad_clip: float | None = None
    chunks: int | None = None  # of time; None: as `plan` says


class Extents(NamedTuple):
    """Where sequences end before the last time step, and where they start anew."""

    lengths: Tensor | None  # [B] int64
    cu_seqlens: Tensor | None  # [B + 1] int64
    resets: Tensor | None  # [B, T] or [total] bool


def run_forward(
    a,  # [B, T, N] or [total, N]
    h,  # like a, is written; may be a
    u,  # [N]
    bias,  # [N] or None
    h0,  # [B, N] or None
    h_n,  # [B, N], is written
    extents,
    options,
):
    """Runs the forward loop.

    a and h have adjacent channels and any strides of batch and time. All other tensors are
    contiguous, of the type that the loops compute in.
    """
    B, N, repeats = _sequences_and_channels(h_n, (a, h), extents, options)
    if repeats > 1:
        u, bias = u.repeat(repeats), None if bias is None else bias.repeat(repeats)
    in_place = a.data_ptr() == h.data_ptr()
    arguments, threads = _arguments(B, N, h, in_place, extents, options)
    arguments.a, arguments.a_stride_b, arguments.a_stride_t = _address_and_strides(a)
    arguments.u, arguments.h_n = u.data_ptr(), h_n.data_ptr()
    if bias is not None:
        arguments.bias = bias.data_ptr()
    if h0 is not None:
        arguments.h0 = h0.data_ptr()
    _run(forward_summaries, forward, arguments, threads, h.dtype, like=h_n)


def run_backward(
    grad_h,  # [B, T, N] or [total, N]
    h,  # like grad_h
    grad_a,  # like grad_h, is written; may be grad_h
    u,  # [N]
    h0,  # [B, N] or None
    grad_state,  # [B, N], the gradient of h_n; is overwritten with that of h0
    extents,
    options,
):
    """Runs the backward loop on tensors as those of `run_forward`, returns grad_u and grad_bias,
    [N] each."""
    B, N, repeats = _sequences_and_channels(grad_state, (grad_h, h, grad_a), extents, options)
    if repeats > 1:
        u = u.repeat(repeats)
    arguments, threads = _arguments(B, N, h, True, extents, options)
    sums = grad_state.new_empty(2, B * arguments.chunks * repeats, N // repeats)
    arguments.grad_u, arguments.grad_bias = sums[0].data_ptr(), sums[1].data_ptr()
    address, stride_b, stride_t = _address_and_strides(grad_h)
    arguments.grad_h = address
    arguments.grad_h_stride_b, arguments.grad_h_stride_t = stride_b, stride_t
    address, stride_b, stride_t = _address_and_strides(grad_a)
    arguments.grad_a = address
    arguments.grad_a_stride_b, arguments.grad_a_stride_t = stride_b, stride_t
    arguments.u, arguments.grad_state = u.data_ptr(), grad_state.data_ptr()
    if h0 is not None:
        arguments.h0 = h0.data_ptr()
    _run(backward_summaries, backward, arguments, threads, h.dtype, like=grad_state)
    return sums[0].sum(0), sums[1].sum(0)


def _sequences_and_channels(state, time_steps, extents, options):
    """B, N, and how many sequences of the batch each of the B stands for.

    A time-first batch [B, T, N] whose sequences all have T steps is one sequence of B * N channels,
    since a time step is then one piece of memory, and long pieces are read fastest.

    state: [B, N]. time_steps: all tensors with a time axis.
    """
    (B, N), (lengths, cu_seqlens, resets) = state.shape, extents
    if B < 2 or options.bidirectional or lengths is not None or cu_seqlens is not None:
        return B, N, 1
    if resets is not None or any(x.stride(0) != N or x.shape[1] < 2 for x in time_steps):
        return B, N, 1
    return 1, B * N, B


def _arguments(B, N, h, in_place, extents, options):
    """What forward and backward have in common, and the number of threads."""
    threads = openmp.thread_count(h.numel())
    fixed = _arguments_without_tensors(B, h.shape[-2], N, threads, in_place, options)
    arguments = Arguments.from_buffer_copy(fixed)
    arguments.h, arguments.h_stride_b, arguments.h_stride_t = _address_and_strides(h)
    lengths, cu_seqlens, resets = extents
    if lengths is not None:
        arguments.lengths = lengths.data_ptr()
    if cu_seqlens is not None:
        arguments.cu_seqlens = cu_seqlens.data_ptr()
    if resets is not None:
        arguments.resets = resets.data_ptr()
        arguments.resets_stride_b, arguments.resets_stride_t = (0, *resets.stride())[-2:]
    return arguments, threads


@functools.lru_cache(1024)
def _arguments_without_tensors(B, T, N, threads, in_place, options):
    """What depends on shapes and options alone.

    Cached, as it takes 1.5 of the 6 microseconds of a call at (1, 1, 256).
    """
    nonlinearity, reverse, bidirectional, grad_clip, chunks = options
    is_tanh, directions = nonlinearity == "tanh", 2 if bidirectional else 1
    if is_tanh:
        if chunks not in (None, 1):
            raise ValueError(f"tanh is not a clamp and allows no chunks of time: chunks={chunks}")
        chunks = 1
    channels = N // directions
    planned = plan(B * directions, T, channels, threads, in_place, chunks)
    lo, hi = (math.nan if bound is None else bound for bound in BOUNDS[nonlinearity])
    return Arguments(
        T=T,
        N=N,
        channels_per_direction=channels,
        reverse=reverse,
        is_tanh=is_tanh,
        work_items=B * directions * planned.channel_blocks,
        channel_blocks=directions * planned.channel_blocks,
        block_size=planned.block_size,
        chunks=planned.chunks,
        lo=lo,
        hi=hi,
        grad_clip=math.inf if grad_clip is None else grad_clip,
    )


def _address_and_strides(x):
    """Of batch and time, for x of [B, T, N] or [total, N]."""
    return x.data_ptr(), *(0, *x.stride())[-3:-1]


def _run(make_summaries, make, arguments, threads, dtype, like):
    """Runs a loop, after the one that summarizes chunks if there are several."""
    if arguments.work_items == 0:
        return
    if arguments.chunks > 1:
        B = arguments.work_items // arguments.channel_blocks
        summaries = like.new_empty(B, arguments.chunks - 1, 5, arguments.N)
        arguments.summaries = summaries.data_ptr()
        openmp.run(_compiled(make_summaries, dtype), arguments, threads)
    openmp.run(_compiled(make, dtype), arguments, threads)


@functools.cache
def _compiled(make, dtype):
    """The loop that `make` makes for tensors of a dtype, compiled once and kept on disk."""
    real = np.float64 if dtype == torch.float64 else np.float32
    name = f"{make.__name__}_{str(dtype).removeprefix('torch.')}"
    signature = typing.signature(types.void, types.CPointer(from_dtype(np.dtype(Arguments))))
    options = {"fastmath": {"contract"}, "error_model": "numpy"}
    return openmp.Loop(compile_loop(make(real, ELEMENT_TYPES[dtype]), name, signature, **options))
