"""Numbers in the compiled loops: 16-bit floats, the clamp, and what is too small to be normal.

The loops compute in float32, or in float64 where the tensors are float64. bfloat16 and float16 are
widened when they are read and rounded when they are written, as integers that hold their bits.

LLVM inlines all functions here (`forceinline`), so that numba compiles each of them once for all
loops of a process. Inlined by numba (`inline="always"`), they made compiling the loops a third
slower.
"""

from typing import NamedTuple

import llvmlite.ir as ir
import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic

_WORD, _FLOAT = ir.IntType(32), ir.FloatType()

# The numpy type in which the loops see the elements of a tensor.
ELEMENT_TYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}


class Limits(NamedTuple):
    """Numbers of the type that the loops compute in."""

    tiny: np.floating  # the smallest normal number
    largest: np.floating  # the largest finite number
    tolerance: np.floating  # relative: how far rounding may move the difference of two numbers


def limits_of(real):
    info = np.finfo(real)
    return Limits(real(info.tiny), real(info.max), real(1024 * info.eps))


@intrinsic
def to_float(typing_context, element):
    """An element of a tensor as a float32, or unchanged where it is a float32 or float64."""
    if isinstance(element, types.Float):
        return element(element), lambda context, builder, signature, arguments: arguments[0]

    def generate(context, builder, signature, arguments):
        bits = builder.zext(arguments[0], _WORD)
        if element == types.uint16:  # bfloat16
            return builder.bitcast(builder.shl(bits, _WORD(16)), _FLOAT)
        magnitude = builder.and_(bits, _WORD(0x7FFF))
        shifted = builder.shl(magnitude, _WORD(13))
        normal = builder.add(shifted, _WORD(112 << 23))
        # A subnormal float16 is its mantissa's share of 2^-14: add it to 2^-14, then subtract that.
        sum_ = builder.bitcast(builder.add(shifted, _WORD(113 << 23)), _FLOAT)
        subnormal = builder.bitcast(builder.fsub(sum_, _FLOAT(2.0**-14)), _WORD)
        not_finite = builder.or_(shifted, _WORD(0x7F800000))
        is_subnormal = builder.icmp_unsigned("<", magnitude, _WORD(0x400))
        is_not_finite = builder.icmp_unsigned(">=", magnitude, _WORD(0x7C00))
        result = builder.select(is_not_finite, not_finite, normal)
        result = builder.select(is_subnormal, subnormal, result)
        sign = builder.shl(builder.and_(bits, _WORD(0x8000)), _WORD(16))
        return builder.bitcast(builder.or_(result, sign), _FLOAT)

    return types.float32(element), generate


@intrinsic
def from_float(typing_context, number, like):
    """A number as an element of the type of `like`, rounded as torch rounds: ties to even."""
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
        # A result that is subnormal in float16 is a multiple of 2^-24, the last bit of the float32
        # number 0.5: adding 0.5 rounds to it.
        sum_ = builder.fadd(builder.bitcast(magnitude, _FLOAT), _FLOAT(0.5))
        subnormal = builder.sub(builder.bitcast(sum_, _WORD), _WORD(126 << 23))
        not_finite = builder.select(is_nan, _WORD(0x7E00), _WORD(0x7C00))
        is_subnormal = builder.icmp_unsigned("<", magnitude, _WORD(113 << 23))
        is_not_finite = builder.icmp_unsigned(">=", magnitude, _WORD(143 << 23))
        result = builder.select(is_not_finite, not_finite, normal)
        result = builder.select(is_subnormal, subnormal, result)
        sign = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(0x8000))
        return builder.trunc(builder.or_(result, sign), ir.IntType(16))

    return like(types.float32, like), generate


@njit(forceinline=True)
def clamp(z, lo, hi):
    """As torch.clamp: NaN stays NaN. A bound that is NaN bounds nothing."""
    z = lo if z < lo else z
    return hi if z > hi else z


@njit(forceinline=True)
def flush_subnormal(z, tiny):
    """0 in place of a subnormal number.

    A state that fades would stay subnormal for many steps, and arithmetic with subnormal numbers is
    tens of times slower, in these loops and in whatever reads the result.
    """
    return type(z)(0) if abs(z) < tiny else z


@njit(forceinline=True)
def power(u, exponent):
    """u^exponent of u's type. Squares double the relative error, so they are taken in float64."""
    base, result = np.float64(u), np.float64(1)
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return type(u)(result)
