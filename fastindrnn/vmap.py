"""`torch.vmap` over the operators: a batch of models is one model of more channels."""

import torch

from .second_order import halves


def _merge(x, dim, size, directions=1):
    """The mapped dimension into the last one, (..., N) to (..., size * N), within each direction's
    channels."""
    if x is None:
        return None
    x = x.unsqueeze(-2).expand(*x.shape[:-1], size, -1) if dim is None else x.movedim(dim, -2)
    x = x.unflatten(-1, (directions, x.shape[-1] // directions))
    return x.transpose(-3, -2).flatten(-3)


def _split(x, size, directions=1):
    """The inverse of `_merge`: (..., size, N)."""
    x = x.unflatten(-1, (directions, size, x.shape[-1] // (directions * size)))
    return x.transpose(-3, -2).flatten(-2)


def _shared(in_dims, sequences):
    """lengths, cu_seqlens and resets are those of all models."""
    if any(dim is not None for dim in in_dims):
        raise ValueError("vmap over lengths, cu_seqlens or resets is not possible: share them")
    return sequences


def _front(y, dim):
    """The mapped dimension, or one of size 1, first."""
    return y.unsqueeze(0) if dim is None else y.movedim(dim, 0)


def _project(info, x, weight):
    """A batch of products of rows x with weight (K, N), both with the mapped dimension first, and
    the dimension over which it is mapped: None where neither factor is."""
    y = (x.flatten(1, -2) @ weight).unflatten(1, x.shape[1:-1])
    return (y[0], None) if y.shape[0] < info.batch_size else (y, 0)


def scan(info, in_dims, a, u, h0, lengths, cu_seqlens, resets, nonlinearity, reverse, grad_clip):
    """The rule of fastindrnn::scan: a scan of n times the channels."""
    options = nonlinearity, reverse, False, grad_clip
    return _scan(info, in_dims, a, u, h0, lengths, cu_seqlens, resets, *options)


def _scan(info, in_dims, a, u, h0, *options):
    *sequences, nonlinearity, reverse, bidirectional, grad_clip = options
    n, directions = info.batch_size, 2 if bidirectional else 1
    sequences = _shared(in_dims[3:6], sequences)
    tensors = zip((a, u, h0), in_dims[:3], strict=True)
    merged = [_merge(x, dim, n, directions) for x, dim in tensors]

    def run(part, reverse):
        options = *sequences, nonlinearity, reverse, grad_clip
        return torch.ops.fastindrnn.scan(*part, *options)

    if bidirectional:
        first, second = halves(*merged)
        pairs = zip(run(first, reverse), run(second, not reverse), strict=True)
        h, h_n = (torch.cat(pair, -1) for pair in pairs)
    else:
        h, h_n = run(merged, reverse)
    dims = h.dim() - 1, h_n.dim() - 1
    return (_split(h, n, directions), _split(h_n, n, directions)), dims


def clip_gradient(info, in_dims, x, limit):
    """The rule of fastindrnn::clip_gradient: elementwise, whichever dimension is mapped."""
    return torch.ops.fastindrnn.clip_gradient(x, limit), in_dims[0]


def scan_backward(info, in_dims, grad_h, grad_h_n, h, u, h0, *options):
    """The rule of fastindrnn::scan_backward."""
    n, directions = info.batch_size, 2 if options[5] else 1
    _shared(in_dims[5:8], options[:3])
    tensors = zip((grad_h, grad_h_n, h, u, h0), in_dims[:5], strict=True)
    merged = [_merge(x, dim, n, directions) for x, dim in tensors]
    grads = torch.ops.fastindrnn.scan_backward(*merged, *options)
    return tuple(_split(g, n, directions) for g in grads), tuple(g.dim() - 1 for g in grads)


def indrnn(info, in_dims, x, weight, bias, u, h0, *options):
    """The rule of fastindrnn::indrnn: a batch of products, then one scan."""
    *walk, _, grad_clip = options
    a, mapped = _project(info, _front(x, in_dims[0]), _front(weight, in_dims[1]).mT)
    if bias is not None:
        a = _front(a, mapped)
        bias = _front(bias, in_dims[2])
        a = a + bias.view(len(bias), *[1] * (a.dim() - 2), -1)
        mapped = 0
        a = a.expand(info.batch_size, *a.shape[1:])
    return _scan(info, (mapped, *in_dims[3:]), a, u, h0, *walk, grad_clip)


def stack(info, in_dims, x, weights, biases, us, h0, *options):
    """The rule of fastindrnn::stack: layer by layer."""
    *sequences, strategy, grad_clip = options
    h0 = None if h0 is None else _front(h0, in_dims[4])
    start = None if h0 is None or h0.shape[0] == 1 else 0
    rows, dim, outputs, ends = x, in_dims[0], [], []
    for layer, (weight, u) in enumerate(zip(weights, us, strict=True)):
        bias, bias_dim = (biases[layer], in_dims[2][layer]) if biases else (None, None)
        state = None if h0 is None else h0[:, layer] if start == 0 else h0[0, layer]
        dims = (dim, in_dims[1][layer], bias_dim, in_dims[3][layer], start, *in_dims[5:8])
        walk = *sequences, False, strategy, grad_clip
        (rows, end), (dim, end_dim) = indrnn(info, dims, rows, weight, bias, u, state, *walk)
        outputs.append(rows.movedim(dim, 0))
        ends.append(end.movedim(end_dim, 0))
    *between, h = outputs
    return (h, torch.stack(ends, 1), torch.stack(between, 1)), (0, 0, 0)


def projected_backward(info, in_dims, grad_next, weight_next, *rest):
    """The rule of fastindrnn::projected_backward: a batch of products, then one scan."""
    *arguments, grad_clip, _ = rest
    weight = _front(weight_next, in_dims[1])
    grad_h, mapped = _project(info, _front(grad_next, in_dims[0]), weight)
    dims = mapped, *in_dims[2:9]
    return scan_backward(info, dims, grad_h, *arguments, False, grad_clip)
