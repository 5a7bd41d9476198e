"""The operators as functions that take records. Here alone the records are taken apart into the
tensors, numbers and strings of an operator's schema."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import Extents, Parameters, Recurrence, Strategy

Tensors = tuple[Tensor, ...]


def _schema_arguments(extents: Extents, recurrence: Recurrence) -> tuple[Any, ...]:
    """What `registration.OPTIONS` names, in its order."""
    return (
        _int64(extents.lengths),
        _int64(extents.cu_seqlens),
        extents.resets,
        recurrence.nonlinearity,
        recurrence.direction,
        recurrence.grad_clip,
    )


def _int64(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.int64).contiguous()


def scan(
    a: Tensor, u: Tensor, h0: Tensor | None, extents: Extents, recurrence: Recurrence
) -> Tensors:
    """h_t = f(a_t + u * h_{t-1}): h and h_n."""
    options = _schema_arguments(extents, recurrence)
    return torch.ops.fastindrnn.scan.default(a, u, h0, *options)


def scan_backward(
    grad_h: Tensor,
    grad_h_n: Tensor | None,
    h: Tensor,
    u: Tensor,
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
) -> Tensors:
    """The gradients of a, u and h0, and that of a bias, the sum of a's over batch and time."""
    options = _schema_arguments(extents, recurrence)
    return torch.ops.fastindrnn.scan_backward.default(grad_h, grad_h_n, h, u, h0, *options)


def indrnn(
    x: Tensor,
    parameters: Parameters,
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
    strategy: Strategy,
) -> Tensors:
    """One layer, h_t = f(W x_t + b + u * h_{t-1}): h and h_n."""
    options = _schema_arguments(extents, recurrence)
    layer = parameters.weight, parameters.bias, parameters.u
    return torch.ops.fastindrnn.indrnn.default(x, *layer, h0, *options, strategy)


def stack(
    x: Tensor,
    layers: Sequence[Parameters],
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
    strategy: Strategy,
) -> Tensors:
    """Layers, each on the output of the one before, in one direction, all with a bias or none: h of
    the last layer, h_n (L, B, N) and the h of the other layers (L - 1, B, T, N)."""
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    us = [layer.u for layer in layers]
    options = _schema_arguments(extents, recurrence)
    return torch.ops.fastindrnn.stack.default(x, weights, biases, us, h0, *options, strategy)


def projected_backward(
    grad_next: Tensor,
    weight_next: Tensor,
    grad_h_n: Tensor | None,
    h: Tensor,
    u: Tensor,
    h0: Tensor | None,
    extents: Extents,
    recurrence: Recurrence,
    strategy: Strategy,
) -> Tensors:
    """`scan_backward` with grad_h = grad_next @ weight_next."""
    options = _schema_arguments(extents, recurrence)
    operator = torch.ops.fastindrnn.projected_backward.default
    return operator(grad_next, weight_next, grad_h_n, h, u, h0, *options, strategy)


def clip_gradient(x: Tensor, limit: float) -> Tensor:
    """A copy of x, whose gradient is clipped to [-limit, limit]."""
    return torch.ops.fastindrnn.clip_gradient.default(x, limit)
