"""`torch.vmap` over the operators: a batch of `size` models is one model of `size` times the
channels, or a batch of products before one recurrence.

Each rule takes the batch's size, the tensor arguments of the operator, the dimension in which each
of these is mapped (None: the same for all models), and the options, which all models share.
"""

import torch

from . import calls


def _merge(x, dim, size, directions):
    """The mapped dimension into the last one, (..., N) to (..., size * N), within the channels of
    each direction."""
    if x is None:
        return None
    x = x.unsqueeze(-2).expand(*x.shape[:-1], size, -1) if dim is None else x.movedim(dim, -2)
    x = x.unflatten(-1, (directions, x.shape[-1] // directions))
    return x.transpose(-3, -2).flatten(-3)


def _split(x, size, directions):
    """The inverse of `_merge`: (..., size, N)."""
    x = x.unflatten(-1, (directions, size, x.shape[-1] // (directions * size)))
    return x.transpose(-3, -2).flatten(-2)


def _as_one_model(operator, size, tensors, dims, extents, recurrence):
    """An operator without a product, on `size` times the channels."""
    directions = 2 if recurrence.direction == "both" else 1
    pairs = zip(tensors, dims, strict=True)
    merged = [_merge(x, dim, size, directions) for x, dim in pairs]
    results = operator(*merged, extents, recurrence)
    return tuple(_split(y, size, directions) for y in results), tuple(y.dim() - 1 for y in results)


def _front(y, dim):
    """The mapped dimension, or one of size 1, first."""
    return y.unsqueeze(0) if dim is None else y.movedim(dim, 0)


def _project(size, x, weight):
    """x @ weight, both with the mapped dimension (of size 1 or `size`) first; and the dimension in
    which the result is mapped, None where neither factor is."""
    y = (x.flatten(1, -2) @ weight).unflatten(1, x.shape[1:-1])
    return (y[0], None) if y.shape[0] < size else (y, 0)


def scan(size, tensors, dims, extents, recurrence):
    """The rule of fastindrnn::scan."""
    return _as_one_model(calls.scan, size, tensors, dims, extents, recurrence)


def scan_backward(size, tensors, dims, extents, recurrence):
    """The rule of fastindrnn::scan_backward."""
    return _as_one_model(calls.scan_backward, size, tensors, dims, extents, recurrence)


def clip_gradient(info, in_dims, x, limit):
    """The rule of fastindrnn::clip_gradient: elementwise, whichever dimension is mapped."""
    return calls.clip_gradient(x, limit), in_dims[0]


def indrnn(size, tensors, dims, extents, recurrence, strategy):
    """The rule of fastindrnn::indrnn: a batch of products, then one recurrence."""
    x, weight, bias, u, h0 = tensors
    x_dim, weight_dim, bias_dim, u_dim, h0_dim = dims
    a, mapped = _project(size, _front(x, x_dim), _front(weight, weight_dim).mT)
    if bias is not None:
        a = _front(a, mapped)
        bias = _front(bias, bias_dim)
        a = a + bias.view(len(bias), *[1] * (a.dim() - 2), -1)
        mapped = 0
        a = a.expand(size, *a.shape[1:])
    return scan(size, (a, u, h0), (mapped, u_dim, h0_dim), extents, recurrence)


def stack(size, tensors, dims, extents, recurrence, strategy):
    """The rule of fastindrnn::stack: layer by layer."""
    x, weights, biases, us, h0 = tensors
    x_dim, weight_dims, bias_dims, u_dims, h0_dim = dims
    h0 = None if h0 is None else _front(h0, h0_dim)
    state_dim = None if h0 is None or h0.shape[0] == 1 else 0
    outputs, ends = [], []
    for layer, (weight, u) in enumerate(zip(weights, us, strict=True)):
        bias, bias_dim = (biases[layer], bias_dims[layer]) if biases else (None, None)
        state = None if h0 is None else h0[:, layer] if state_dim == 0 else h0[0, layer]
        (x, end), (x_dim, end_dim) = indrnn(
            size,
            (x, weight, bias, u, state),
            (x_dim, weight_dims[layer], bias_dim, u_dims[layer], state_dim),
            extents,
            recurrence,
            strategy,
        )
        outputs.append(x.movedim(x_dim, 0))
        ends.append(end.movedim(end_dim, 0))
    *between, h = outputs
    return (h, torch.stack(ends, 1), torch.stack(between, 1)), (0, 0, 0)


def projected_backward(size, tensors, dims, extents, recurrence, strategy):
    """The rule of fastindrnn::projected_backward: a batch of products, then one recurrence."""
    grad_next, weight_next, *others = tensors
    next_dim, weight_dim, *other_dims = dims
    weight = _front(weight_next, weight_dim)
    grad_h, mapped = _project(size, _front(grad_next, next_dim), weight)
    return scan_backward(size, (grad_h, *others), (mapped, *other_dims), extents, recurrence)
