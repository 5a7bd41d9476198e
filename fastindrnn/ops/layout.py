"""How the tensors of an operator lie in memory.

The input of a layer and h are (B, T, channels), or (total, channels) where sequences of several
lengths follow each other. A padded batch keeps its order in memory: from a time-first input, of
strides (channels, B * channels, 1), every result of its form is time-first too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..kernels import tensors


def channels_contiguous(x: Tensor) -> Tensor:
    """x, or a copy of it, in which the channels of a time step are adjacent, and no two time steps
    share memory, unless all of them do (stride 0)."""
    N = x.shape[-1]
    is_adjacent = N <= 1 or x.stride(-1) == 1
    is_apart = all(stride == 0 or stride >= N for stride in x.stride()[:-1])
    return x if is_adjacent and is_apart else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """x, None where it is None, or a contiguous copy where x is not contiguous."""
    return None if x is None else x.contiguous()


def empty_like_input(x: Tensor, channels: int, layers: int | None = None) -> Tensor:
    """Uninitialised memory in x's order of batch and time: (B, T, channels), or (total, channels);
    with `layers` (layers, B, T, channels), or (layers, total, channels)."""
    first = () if layers is None else (layers,)
    if tensors.is_time_first(x):
        return x.new_empty(*first, x.shape[1], x.shape[0], channels).transpose(-3, -2)
    return x.new_empty(*first, *x.shape[:-1], channels)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x_t + b at each time step, in x's order of batch and time in memory."""
    if tensors.is_time_first(x):
        return linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
    return linear(x, weight, bias)


def halves(*whole: Tensor | None) -> list[tuple[Any, ...]]:
    """The first half of the channels of each tensor, and the second half: two views of each."""

    def split(x):
        if x is None:
            return None, None
        # Not chunk, whose sizes PyTorch cannot always follow where they are symbols, nor unflatten,
        # for which the vmap of torch.autograd has no rule.
        return x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).unbind(-2)

    return list(zip(*map(split, whole), strict=True))


def joined(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
    """The inverse of `halves`: each pair of tensors side by side along the channels."""
    pairs = zip(first, second, strict=True)
    return tuple(None if x is None else torch.cat((x, y), -1) for x, y in pairs)
