"""IndRNN on a CPU: the recurrence, the layer and their gradients, on the loops of `loops`.

Threads: those of torch, see `openmp`.

The product is computed whole, and the recurrence then overwrites it. Tried and left: the product in
slices of 1 to 32 MiB (2, 4 or 8 sequences; 512 to 8192 steps of a single one), each followed by its
scan while it is in cache. Of the time of the whole product, on 2 threads, float32, K = N:

    B, T, N            whole, then scan   slices, then scans (worst to best size)
    32, 1024, 512      1.06               1.15 to 1.07
    16, 784, 512       1.06               1.16 to 1.06
    8, 4096, 1024      1.03               1.04 (2 sequences)
    32, 1000, 128      1.13               1.31 to 1.20
    1, 65536, 256      1.18               3.19 to 1.49

A scan of what has left the cache costs 2 to 6 % of a product of 512 channels, and there is no more
to be gained; each product packs the weight again, and threads wait for each other twice a slice. At
(128, 150, 2000) other programs disturbed the measurement.
"""

import torch

from . import openmp
from .launch import run
from .loops import backward, forward

# The loop adds the bias for free; in the matrix product it would be one more pass over memory.
ADDS_BIAS = True


def scan_forward(
    a,  # [B, T, N] or [total, N]
    u,  # [N]
    h0,  # [B, N] or None
    h,  # like a, is written; may be a
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    bias=None,  # [N], is added to a
    bidirectional=False,  # the second half of the channels is walked the other way
    chunks=None,  # of time; None: as `launch._plan` says
):
    """Writes h, returns h_n [B, N] of a's dtype. In half precision the state is float32.

    Raises ValueError for several chunks of tanh.
    """
    walk = nonlinearity, reverse, bidirectional, chunks
    return _forward(a, u, h0, h, bias, lengths, cu_seqlens, resets, walk)


def _forward(a, u, h0, h, bias, lengths, cu_seqlens, resets, walk):
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    sequences = lengths, cu_seqlens, resets
    h_n = a.new_empty((_batch(h, cu_seqlens), h.shape[-1]), dtype=dtype)
    bias = h_n.new_zeros(h.shape[-1]) if bias is None else _to(bias, dtype)
    states = _to(u, dtype), bias, None if h0 is None else _to(h0, dtype), h_n
    run(forward, (a, h, None), states, sequences, *walk)
    return _to(h_n, a.dtype)


def scan_backward(
    grad_h,  # [B, T, N] or [total, N]
    grad_h_n,  # [B, N] or None
    h,  # like grad_h
    u,  # [N]
    h0,  # [B, N] or None
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    grad_clip=None,
    grad_a=None,  # like h, is written; may be grad_h
    chunks=None,  # of time; None: as `launch._plan` says
):
    """Returns grad_a like h, grad_u [N] of u's dtype, grad_h0 [B, N] of h0's dtype, else h's, and
    grad_b [N] of h's dtype: the sum of grad_a over batch and time.

    Raises ValueError for several chunks of tanh.
    """
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    sequences = lengths, cu_seqlens, resets
    if grad_a is None:
        grad_a = torch.empty_like(h)
    # The gradient of h_n on the way in, that of h0 on the way out.
    if grad_h_n is None:
        message = h.new_zeros((_batch(h, cu_seqlens), h.shape[-1]), dtype=dtype)
    else:
        message = grad_h_n.to(dtype, copy=True)
    states = _to(u, dtype), None, None if h0 is None else _to(h0, dtype), message
    rows = grad_a, h, _to(grad_h, h.dtype)
    walk = nonlinearity, reverse, False, chunks, grad_clip
    sums = run(backward, rows, states, sequences, *walk)
    sum_u, sum_b = (x.sum(0) for x in sums)  # two tensors, neither a view of the other
    grad_h0 = _to(message, h.dtype if h0 is None else h0.dtype)
    return grad_a, _to(sum_u, u.dtype), grad_h0, _to(sum_b, h.dtype)


def indrnn_forward(
    x,  # [B, T, K] or [total, K]
    weight,  # [N, K]
    bias,  # [N] or None
    u,  # [N]
    h0,  # [B, N] or None
    h,  # [B, T, N] or [total, N], is written
    *,
    nonlinearity="relu",
    reverse=False,
    bidirectional=False,  # the second half of the channels is walked the other way
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    strategy="auto",  # or "split", which is the same
):
    """Writes h_t = f(W x_t + b + u * h_{t-1}), returns h_n [B, N] of x's dtype.

    The product is written to h, and there the recurrence overwrites it.
    """
    _check_strategy(strategy)
    _product(x, weight, h)
    walk = nonlinearity, reverse, bidirectional, None
    return _forward(h, u, h0, h, bias, lengths, cu_seqlens, resets, walk)


def projected_backward(
    grad_next,  # [B, T, M] or [total, M], grad_a of the layer above
    weight_next,  # [M, N], its weight
    grad_h_n,  # [B, N] or None
    h,  # [B, T, N] or [total, N]
    u,  # [N]
    h0,  # [B, N] or None
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    grad_clip=None,
    strategy="auto",  # or "split", which is the same
):
    """`scan_backward` with grad_h = grad_next @ weight_next, in whose memory grad_a is returned."""
    _check_strategy(strategy)
    grad_a = torch.empty_like(h)
    _product(grad_next, weight_next.t(), grad_a)
    return scan_backward(
        grad_a,
        grad_h_n,
        h,
        u,
        h0,
        nonlinearity=nonlinearity,
        reverse=reverse,
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        resets=resets,
        grad_clip=grad_clip,
        grad_a=grad_a,
    )


def threads():
    """On which threads the loops run, in words."""
    return openmp.found()


def _check_strategy(strategy):
    if strategy == "fused":
        raise ValueError("strategy 'fused': there is no fused way on a CPU, only 'split'")
    if strategy not in ("auto", "split"):
        raise ValueError(f"strategy must be 'auto' or 'split' on a CPU, but is {strategy!r}")


def _product(x, weight, out):
    """x @ weight.t() in the memory of `out`, which is dense, in its order of batch and time."""
    if x.is_contiguous() and out.is_contiguous():  # makes the views that it needs in less time
        torch.nn.functional.linear(x, weight, out=out)
        return
    if out.dim() == 3:
        if out.stride(0) < out.stride(1):
            x, out = x.transpose(0, 1), out.transpose(0, 1)
        rows = out.shape[0] * out.shape[1]
        x, out = x.reshape(rows, x.shape[-1]), out.view(rows, out.shape[-1])
    torch.mm(x, weight.t(), out=out)


def _to(tensor, dtype):
    """As `tensor.to(dtype)`, which costs half a microsecond also where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _batch(h, cu_seqlens):
    return h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
