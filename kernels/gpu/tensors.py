"""What a launch reads off its arguments: options, sizes, strides and alignment.

Sequences are (B, T, N), in either order of batch and time in memory, or packed: (total, N) with
cu_seqlens (B + 1,).
"""

import math
from typing import NamedTuple

import torch


class ScanOptions(NamedTuple):
    """The options of a call, with the tensors that say where sequences end and start anew."""

    nonlinearity: str = "relu"
    reverse: bool = False
    lengths: torch.Tensor | None = None  # (B,)
    cu_seqlens: torch.Tensor | None = None  # (B + 1,)
    resets: torch.Tensor | None = None  # bool, (B, T) or (total,)


def sizes(x, cu_seqlens):
    """B and T; of packed sequences T is their mean length."""
    if cu_seqlens is None:
        return x.shape[:2]
    B = len(cu_seqlens) - 1
    return B, len(x) // max(B, 1)


def padded_length(x, cu_seqlens):
    """What the kernels call T: the padded length, or the number of rows of packed sequences."""
    return x.shape[1] if cu_seqlens is None else len(x)


def strides(x, cu_seqlens):
    """The strides of batch and time; of packed sequences the first one is 0."""
    return x.stride()[:2] if cu_seqlens is None else (0, x.stride(0))


def vector_of(tensors, cu_seqlens):
    """How many neighbouring numbers can be loaded at once: the largest power of two, up to 16
    bytes, that divides the channels and the strides of all of these tensors."""
    most = 16 // tensors[0].element_size()
    if any(x.data_ptr() % 16 for x in tensors):
        return 1
    every_stride = [stride for x in tensors for stride in strides(x, cu_seqlens)]
    return math.gcd(most, tensors[0].shape[-1], *every_stride)


def last_offset(x):
    """The offset of the last element of x, in elements."""
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
