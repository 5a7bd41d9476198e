"""What the compiled loops of the CPU are told, and how they reach memory.

These functions are inlined by LLVM, and so compiled once for all loops of a process: inlined by
numba, they made it a third slower to compile the loops.
"""

import struct

import llvmlite.ir as ir
import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import intrinsic

from . import openmp

# Elements by which memory is asked for ahead of use: the processor's own prefetcher follows rows
# upwards in time only, and without this a walk down takes twice as long at 512 channels.
_AHEAD = 2048


# Addresses, sizes, strides in elements, flags, in C's layout. `states_b` is the stride of h0 and
# h_n from one sequence to the next; from channel `turn` on, time is walked the other way.
_INTEGERS = [
    *("items", "blocks", "width", "chunks", "T", "N", "turn", "reverse", "tanh", "states_b"),
    *("a", "a_b", "a_t", "h", "h_b", "h_t", "g", "g_b", "g_t", "u", "bias", "h0", "h_n"),
    *("lengths", "cu_seqlens", "resets", "resets_b", "resets_t", "grad_u", "grad_b", "maps"),
]
_REALS = ["lo", "hi", "clip"]
ARGUMENTS = np.dtype(
    [(name, np.int64) for name in _INTEGERS] + [(name, np.float64) for name in _REALS]
)
# Ten times as fast as to fill in a record of numpy, field by field.
pack = struct.Struct(f"={len(_INTEGERS)}q{len(_REALS)}d").pack

_WORD, _FLOAT = ir.IntType(32), ir.FloatType()
_thread_num, _num_threads = openmp.thread_num, openmp.num_threads


@intrinsic
def _pointer(typing_context, address, index, like):
    def generate(context, builder, signature, arguments):
        array = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(array, [arguments[1]])

    return types.CPointer(like)(types.intp, types.intp, like), generate


@njit(forceinline=True)
def row(address, index, count, like):
    """`count` elements of the type of `like`, from element `index` of the array at `address`."""
    return carray(_pointer(address, index, like), count)


# How numbers lie in memory, as a numpy type; numbers of 16 bits become float32 in the loops.
STORED = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}


@intrinsic
def read(typing_context, number):
    """A number from memory as a float32, or as it is if it is a float."""
    if isinstance(number, types.Float):
        return number(number), lambda context, builder, signature, arguments: arguments[0]

    def generate(context, builder, signature, arguments):
        bits = builder.zext(arguments[0], _WORD)
        if number == types.uint16:  # bfloat16
            return builder.bitcast(builder.shl(bits, _WORD(16)), _FLOAT)
        magnitude = builder.and_(bits, _WORD(0x7FFF))
        shifted = builder.shl(magnitude, _WORD(13))
        normal = builder.add(shifted, _WORD(112 << 23))
        # Below the normal numbers: what the mantissa adds to 2^-14.
        sum_ = builder.bitcast(builder.add(shifted, _WORD(113 << 23)), _FLOAT)
        small = builder.bitcast(builder.fsub(sum_, _FLOAT(2.0**-14)), _WORD)
        strange = builder.or_(shifted, _WORD(0x7F800000))  # infinite or NaN
        is_small = builder.icmp_unsigned("<", magnitude, _WORD(0x400))
        is_strange = builder.icmp_unsigned(">=", magnitude, _WORD(0x7C00))
        result = builder.select(is_small, small, builder.select(is_strange, strange, normal))
        sign = builder.shl(builder.and_(bits, _WORD(0x8000)), _WORD(16))
        return builder.bitcast(builder.or_(result, sign), _FLOAT)

    return types.float32(number), generate


@intrinsic
def stored(typing_context, number, like):
    """A number as in memory, of the type of `like`, rounded as torch does: ties to even."""
    if isinstance(like, types.Float):
        return like(like, like), lambda context, builder, signature, arguments: arguments[0]

    def generate(context, builder, signature, arguments):
        number = arguments[0]
        bits, is_nan = builder.bitcast(number, _WORD), builder.fcmp_unordered("uno", number, number)
        if like == types.uint16:  # bfloat16
            odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
            rounded = builder.add(builder.add(bits, _WORD(0x7FFF)), odd)
            result = builder.select(is_nan, _WORD(0x7FC0), builder.lshr(rounded, _WORD(16)))
            return builder.trunc(result, ir.IntType(16))
        magnitude = builder.and_(bits, _WORD(0x7FFFFFFF))
        odd = builder.and_(builder.lshr(magnitude, _WORD(13)), _WORD(1))
        rounded = builder.add(builder.sub(magnitude, _WORD((112 << 23) - 0xFFF)), odd)
        normal = builder.lshr(rounded, _WORD(13))
        # Below the normal numbers: 0.5 has its last bit at 2^-24.
        sum_ = builder.fadd(builder.bitcast(magnitude, _FLOAT), _FLOAT(0.5))
        small = builder.sub(builder.bitcast(sum_, _WORD), _WORD(126 << 23))
        strange = builder.select(is_nan, _WORD(0x7E00), _WORD(0x7C00))
        is_small = builder.icmp_unsigned("<", magnitude, _WORD(113 << 23))
        is_strange = builder.icmp_unsigned(">=", magnitude, _WORD(143 << 23))
        result = builder.select(is_small, small, builder.select(is_strange, strange, normal))
        sign = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(0x8000))
        return builder.trunc(builder.or_(result, sign), ir.IntType(16))

    return like(types.float32, like), generate


@intrinsic
def _numbers_in_a_line(typing_context, like):
    number = 64 * 8 // like.bitwidth

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, number)

    return types.intp(like), generate


@intrinsic
def _prefetch_line(typing_context, address, index, like):
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
def prefetch(address, index, count, like):
    for j in range(0, count, _numbers_in_a_line(like)):
        _prefetch_line(address, index + j, like)


@njit(forceinline=True)
def lead(count):
    """How many steps ahead of use a row of `count` elements is asked for."""
    return _AHEAD // count + 1


@njit(forceinline=True)
def share(tasks):
    """The range of tasks of the thread that calls."""
    members, member = _num_threads(), _thread_num()
    return tasks * member // members, tasks * (member + 1) // members


@njit(forceinline=True)
def channels(x, item):
    """A work item: sequence, first channel, number of channels, direction of the walk."""
    b, n0 = item // x.blocks, item % x.blocks * x.width
    end = x.N
    if x.turn < x.N:  # as many runs of channels in each half
        half = x.blocks // 2
        second = item % x.blocks >= half
        n0 = item % x.blocks % half * x.width + (x.turn if second else 0)
        end = x.N if second else x.turn
        return b, n0, min(x.width, end - n0), (x.reverse != 0) != second
    return b, n0, min(x.width, end - n0), x.reverse != 0


@njit(forceinline=True)
def extent(x, b):
    """First row of sequence b, its length, and how many rows of the output are its own.

    Compiled code does not look at the values: one out of range must not leave the tensor.
    """
    if x.cu_seqlens:
        bounds = row(x.cu_seqlens, b, 2, np.int64(0))
        begin = min(max(bounds[0], 0), x.T)
        length = min(max(bounds[1], begin), x.T) - begin
        return begin, length, length
    if x.lengths:
        return np.int64(0), min(max(row(x.lengths, b, 1, np.int64(0))[0], 0), x.T), x.T
    return np.int64(0), x.T, x.T


@njit(forceinline=True)
def steps(x, length, chunk):
    """The steps of a chunk of a sequence. Chunk 0 has half the length of the others, as to run it
    takes twice the time of a fold; and at least one step, so that the state has passed the clamp.
    """
    others = x.chunks - 1
    size = (2 * length + 2 * others) // (2 * others + 1)
    first = min(max(length - others * size, 1), length)
    if chunk == 0:
        return np.int64(0), first
    start = min(first + (chunk - 1) * size, length)
    return start, min(start + size, length)


@njit(forceinline=True)
def time(begin, length, i, reverse):
    """The row of step i of the walk, which goes down in time if reversed."""
    return begin + (length - 1 - i if reverse else i)


@njit(forceinline=True)
def is_reset(x, b, t):
    return x.resets != 0 and row(x.resets, b * x.resets_b + t * x.resets_t, 1, np.uint8(0))[0] != 0


@njit(forceinline=True)
def clamp(z, lo, hi):
    """As torch.clamp: NaN stays NaN."""
    z = lo if z < lo else z
    return hi if z > hi else z


@njit(forceinline=True)
def flush(z, tiny):
    """0 for a number below the normal ones. A state that fades for long would stay there for good,
    and arithmetic with such numbers is tens of times slower, here and in what reads the result."""
    return type(z)(0) if abs(z) < tiny else z
