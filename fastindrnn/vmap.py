"""`torch.vmap` over the operators: a batch of models is one model of more channels."""

import torch


def _merge(x, dim, size):
    """The mapped dimension into the last one, (..., N) to (..., size * N)."""
    if x is None:
        return None
    x = x.unsqueeze(-2).expand(*x.shape[:-1], size, -1) if dim is None else x.movedim(dim, -2)
    return x.flatten(-2)


def _split(x, size):
    return x.unflatten(-1, (size, x.shape[-1] // size))


def _shared(in_dims, *sequences):
    """lengths, cu_seqlens and resets are those of all models."""
    if any(dim is not None for dim in in_dims):
        raise ValueError("vmap over lengths, cu_seqlens or resets is not possible: share them")
    return sequences


def scan(info, in_dims, a, u, h0, lengths, cu_seqlens, resets, *options):
    """The rule of fastindrnn::scan: a scan of n times the channels."""
    n = info.batch_size
    sequences = _shared(in_dims[3:6], lengths, cu_seqlens, resets)
    merged = [_merge(x, dim, n) for x, dim in zip((a, u, h0), in_dims[:3], strict=True)]
    h, h_n = torch.ops.fastindrnn.scan(*merged, *sequences, *options)
    return (_split(h, n), _split(h_n, n)), (h.dim() - 1, h_n.dim() - 1)


def scan_backward(info, in_dims, grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, *options):
    """The rule of fastindrnn::scan_backward."""
    n = info.batch_size
    sequences = _shared(in_dims[5:8], lengths, cu_seqlens, resets)
    tensors = (grad_h, grad_h_n, h, u, h0)
    merged = [_merge(x, dim, n) for x, dim in zip(tensors, in_dims[:5], strict=True)]
    grads = torch.ops.fastindrnn.scan_backward(*merged, *sequences, *options)
    return tuple(_split(g, n) for g in grads), tuple(g.dim() - 1 for g in grads)


def indrnn(info, in_dims, x, weight, bias, u, h0, *options):
    """The rule of fastindrnn::indrnn: a batch of products, then one scan."""

    def front(y, dim):
        """The mapped dimension, or one of size 1, first."""
        return y.unsqueeze(0) if dim is None else y.movedim(dim, 0)

    x, weight = front(x, in_dims[0]), front(weight, in_dims[1])
    a = x.flatten(1, -2) @ weight.mT
    if bias is not None:
        a = a + front(bias, in_dims[2]).unsqueeze(1)
    a = a.unflatten(1, x.shape[1:-1])
    mapped = None if a.shape[0] < info.batch_size else 0
    return scan(info, (mapped, *in_dims[3:]), a if mapped == 0 else a[0], u, h0, *options)
