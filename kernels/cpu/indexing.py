"""The arguments of a compiled loop, the part of the work that a thread does, and where in memory
that part lies.

Tensors with a time axis are [B, T, N], or [total, N] with cu_seqlens: any strides of batch and
time, adjacent channels. The work is divided into

    work items    one sequence and some adjacent channels, a channel block
    chunks        some consecutive steps of a work item; often one chunk has all of them
    tasks         one chunk each; every thread has some consecutive tasks

Steps are counted in the order in which a loop visits them: step 0 is a sequence's first time step
in a forward loop, its last one in a forward loop with reverse=True. A backward loop visits the time
steps of its forward loop in the opposite order.

All functions here are inlined by LLVM, for the reason that `arithmetic` gives.
"""

import ctypes
from typing import NamedTuple

import llvmlite.ir as ir
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from .openmp import num_threads, thread_num

# How many elements ahead of use a time step is prefetched. The processor's own prefetcher follows
# time steps upwards only: without this, a loop from the last time step to the first takes twice as
# long at 512 channels.
_PREFETCH_DISTANCE = 2048

_INTEGERS = [
    *("T", "N"),
    "channels_per_direction",  # N, or N / 2 where there are two directions
    "reverse",  # of the first direction; the second one is opposite to it
    "is_tanh",
    "work_items",
    "channel_blocks",  # of a sequence
    "block_size",  # channels of a block; the last one may have fewer
    "chunks",  # of time
    *("a", "a_stride_b", "a_stride_t"),  # [B, T, N] or [total, N], as h, grad_h and grad_a
    *("h", "h_stride_b", "h_stride_t"),
    *("grad_h", "grad_h_stride_b", "grad_h_stride_t"),
    *("grad_a", "grad_a_stride_b", "grad_a_stride_t"),
    *("u", "bias"),  # [N]
    *("h0", "h_n"),  # [B, N]
    "grad_state",  # [B, N], holds the gradient of h_n and then that of h0
    *("grad_u", "grad_bias"),  # [B, chunks, N]
    "lengths",  # [B]
    "cu_seqlens",  # [B + 1]
    *("resets", "resets_stride_b", "resets_stride_t"),  # [B, T] or [total]
    "summaries",  # [B, chunks - 1, 5, N], see `chunks`
]
# The bounds of h, NaN for none: a comparison with NaN is false, so that no state is at that bound,
# be it infinite; and that of the gradients, inf for none.
_REALS = ["lo", "hi", "grad_clip"]


class Arguments(ctypes.Structure):
    """The arguments of every loop.

    Tensors are addresses, 0 for a tensor that is not given. Strides are in elements.

    A ctypes structure is filled ten times as fast as a numpy record, field by field.
    """

    _fields_ = [(name, ctypes.c_int64) for name in _INTEGERS] + [
        (name, ctypes.c_double) for name in _REALS
    ]


class TimeSteps(NamedTuple):
    """A tensor [B, T, N] or [total, N] as compiled code sees it."""

    address: int
    stride_b: int
    stride_t: int
    like: np.generic  # any number of the tensor's element type


class Chunk(NamedTuple):
    """Steps `start` to `stop` of `count` channels of one sequence."""

    index: int  # of the chunk within its work item
    b: int  # the sequence
    channel: int  # the first one
    count: int
    begin: int  # where the sequence begins along the tensor's time axis
    length: int  # of the sequence
    start: int
    stop: int
    reverse: bool  # whether step 0 is the last time step


@intrinsic
def _pointer(typing_context, address, index, like):
    def generate(context, builder, signature, arguments):
        array = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(array, [arguments[1]])

    return types.CPointer(like)(types.intp, types.intp, like), generate


@njit(forceinline=True)
def elements(address, first, count, like):
    """An array of `count` elements, of the type of `like`, from the `first` one at `address`."""
    return carray(_pointer(address, first, like), count)


@intrinsic
def _elements_of_cache_line(typing_context, like):
    number = 64 * 8 // like.bitwidth

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, number)

    return types.intp(like), generate


@intrinsic
def _prefetch_cache_line(typing_context, address, index, like):
    def generate(context, builder, signature, arguments):
        array = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(like)))
        line = builder.bitcast(builder.gep(array, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (line.type,), kind)
        # For reading, to be kept in all cache levels, as data.
        builder.call(function, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, like), generate


@njit(forceinline=True)
def position(chunk, step):
    """Where a step of the chunk's sequence lies along the tensor's time axis."""
    return chunk.begin + (chunk.length - 1 - step if chunk.reverse else step)


@njit(forceinline=True)
def _first_element(tensor, chunk, step):
    t = position(chunk, step)
    return chunk.b * tensor.stride_b + t * tensor.stride_t + chunk.channel


@njit(forceinline=True)
def channels_at(tensor, chunk, step):
    """The chunk's channels at a step, an array (count,) that is a view of `tensor`."""
    first = _first_element(tensor, chunk, step)
    return elements(tensor.address, first, chunk.count, tensor.like)


@njit(forceinline=True)
def channels_of_state(args, address, chunk, like):
    """The chunk's channels of a tensor [B, N] at `address`, an array (count,) that is a view."""
    return elements(address, chunk.b * args.N + chunk.channel, chunk.count, like)


@njit(forceinline=True)
def prefetch_distance(chunk):
    """How many steps before its use a step is prefetched. A division: once for a chunk."""
    return _PREFETCH_DISTANCE // chunk.count + 1


@njit(forceinline=True)
def prefetch(tensor, chunk, step, distance):
    """Starts to load the chunk's channels `distance` steps later, or at its last step."""
    first = _first_element(tensor, chunk, min(step + distance, chunk.stop - 1))
    for j in range(0, chunk.count, _elements_of_cache_line(tensor.like)):
        _prefetch_cache_line(tensor.address, first + j, tensor.like)


@njit(forceinline=True)
def is_reset(args, chunk, step):
    if args.resets == 0:
        return False
    t = position(chunk, step)
    first = chunk.b * args.resets_stride_b + t * args.resets_stride_t
    return elements(args.resets, first, 1, np.uint8(0))[0] != 0


@njit(forceinline=True)
def load_or_zero(buffer, address, first, count):
    """Copies `count` elements from the `first` one at `address`, or writes 0 if there is none."""
    if address:
        given = elements(address, first, count, buffer[0])
        for j in range(count):
            buffer[j] = given[j]
    else:
        for j in range(count):
            buffer[j] = 0


@njit(forceinline=True)
def zero_padding(args, tensor, chunk):
    """Writes 0 to the time steps of a padded sequence that lie past its length."""
    end = args.T if args.lengths else chunk.length
    for t in range(chunk.length, end):
        first = chunk.b * tensor.stride_b + t * tensor.stride_t + chunk.channel
        padding = elements(tensor.address, first, chunk.count, tensor.like)
        for j in range(chunk.count):
            padding[j] = 0


@njit(forceinline=True)
def _tasks_of_item(args):
    return max(args.chunks - 1, 1)


@njit(forceinline=True)
def tasks_of_thread(args):
    """The tasks of the thread that calls, as the first one and the end."""
    tasks, threads, thread = args.work_items * _tasks_of_item(args), num_threads(), thread_num()
    return tasks * thread // threads, tasks * (thread + 1) // threads


@njit(forceinline=True)
def time_range(args, b):
    """Where sequence b begins along the time axis of a tensor, and its length.

    Values out of range are moved into it: compiled code must not write outside of a tensor.
    """
    if args.cu_seqlens:
        ends = elements(args.cu_seqlens, b, 2, np.int64(0))  # of the sequence before, and of b
        begin = min(max(ends[0], 0), args.T)
        return begin, min(max(ends[1], begin), args.T) - begin
    if args.lengths:
        length = elements(args.lengths, b, 1, np.int64(0))[0]
        return np.int64(0), min(max(length, 0), args.T)
    return np.int64(0), args.T


@njit(forceinline=True)
def _steps_of_chunk(args, length, index):
    """Start and stop of a chunk. Chunk 0 has half as many steps as the others, see `plan`.

    It has at least one step, since a map takes for granted that the state before it is within the
    bounds, and h0 need not be.
    """
    others = args.chunks - 1
    size = (2 * length + 2 * others) // (2 * others + 1)
    first = min(max(length - others * size, 1), length)
    if index == 0:
        return np.int64(0), first
    start = min(first + (index - 1) * size, length)
    return start, min(start + size, length)


@njit(forceinline=True)
def chunk_of(args, task, summarizes, backward):
    """The chunk of a task, its steps in the order of a forward or a backward loop.

    summarizes: whether this is the first loop of two. The second one has no task for chunk 0, which
    the first one runs, and so its task 0 of a work item is the last chunk.
    """
    item, index = task // _tasks_of_item(args), task % _tasks_of_item(args)
    if index == 0 and not summarizes:
        index = args.chunks - 1
    b, block = item // args.channel_blocks, item % args.channel_blocks
    channel, end, reverse = block * args.block_size, args.N, (args.reverse != 0) != backward
    if args.channels_per_direction < args.N:  # two directions of as many blocks each
        half = args.channel_blocks // 2
        if block < half:
            end = args.channels_per_direction
        else:
            channel = (block - half) * args.block_size + args.channels_per_direction
            reverse = not reverse
    begin, length = time_range(args, b)
    start, stop = _steps_of_chunk(args, length, index)
    count = min(args.block_size, end - channel)
    return Chunk(index, b, channel, count, begin, length, start, stop, reverse)


@njit(forceinline=True)
def with_steps(chunk, start, stop):
    """The same chunk with other steps."""
    index, b, channel, count, begin, length, _, _, reverse = chunk
    return Chunk(index, b, channel, count, begin, length, start, stop, reverse)
