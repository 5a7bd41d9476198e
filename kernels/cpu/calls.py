"""The recurrence and the layer on a CPU, and their gradients, as the operators call them.

Tensors with a time axis are [B, T, N], or [total, N] with cu_seqlens: any strides of batch and
time, adjacent channels. All other tensors are contiguous. Arguments are checked by the caller.

A layer computes its whole matrix product first, and then the recurrence in the product's memory.
Slices of 1 to 32 MiB (2, 4 or 8 sequences; 512 to 8192 steps of a single one), with the recurrence
after each slice's product while the slice is in cache, were tried and are slower. Time in multiples
of that of the product alone, on 2 threads, float32, K = N:

    B, T, N            whole product    in slices, worst to best size
    32, 1024, 512      1.06             1.15 to 1.07
    16, 784, 512       1.06             1.16 to 1.06
    8, 4096, 1024      1.03             1.04 (2 sequences)
    32, 1000, 128      1.13             1.31 to 1.20
    1, 65536, 256      1.18             3.19 to 1.49

At 512 channels the recurrence adds 6 % to the product, and slices cannot save more than that. They
cost more: each product packs the weight again, and the threads wait for each other twice a slice.
"""

import torch

from ..tensors import flat_view, flatten_like, state_dtype
from .launch import Extents, Options, run_backward, run_forward


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
    bidirectional=False,  # the second half of the channels runs opposite in time
    chunks=None,  # of time; None: as `plan` says
):
    """Writes h_t = f(a_t + bias + u * h_{t-1}), returns h_n [B, N] of a's dtype.

    In half precision the state is float32. Raises ValueError for several chunks of tanh.
    """
    dtype = state_dtype(a)
    h_n = a.new_empty((_batch_size(h, cu_seqlens), h.shape[-1]), dtype=dtype)
    run_forward(
        a=a,
        h=h,
        u=_to(u, dtype),
        bias=None if bias is None else _to(bias, dtype),
        h0=None if h0 is None else _to(h0, dtype),
        h_n=h_n,
        extents=Extents(lengths, cu_seqlens, resets),
        options=Options(nonlinearity, reverse, bidirectional=bidirectional, chunks=chunks),
    )
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
    chunks=None,  # of time; None: as `plan` says
):
    """Returns grad_a like h, grad_u [N] of u's dtype, grad_h0 [B, N] of h0's dtype, else h's, and
    grad_bias [N] of h's dtype: the sum of grad_a over batch and time.

    Raises ValueError for several chunks of tanh.
    """
    dtype = state_dtype(h)
    if grad_h_n is None:
        shape = _batch_size(h, cu_seqlens), h.shape[-1]
        grad_state = h.new_zeros(shape, dtype=dtype)
    else:
        grad_state = grad_h_n.to(dtype, copy=True)
    if grad_a is None:
        grad_a = torch.empty_like(h)
    grad_u, grad_bias = run_backward(
        grad_h=grad_h,
        h=h,
        grad_a=grad_a,
        u=_to(u, dtype),
        h0=None if h0 is None else _to(h0, dtype),
        grad_state=grad_state,
        extents=Extents(lengths, cu_seqlens, resets),
        options=Options(nonlinearity, reverse, grad_clip=grad_clip, chunks=chunks),
    )
    grad_h0 = _to(grad_state, h.dtype if h0 is None else h0.dtype)
    return grad_a, _to(grad_u, u.dtype), grad_h0, _to(grad_bias, h.dtype)


def indrnn_forward(
    x,  # [B, T, K] or [total, K]
    weight,  # [N, K]
    bias,  # [N] or None
    u,  # [N]
    h0,  # [B, N] or None
    h,  # [B, T, N] or [total, N], is written
    *,
    strategy="auto",  # or "split", which is the same on a CPU
    **options,  # of `scan_forward`
):
    """Writes h_t = f(W x_t + bias + u * h_{t-1}), returns h_n [B, N] of x's dtype."""
    _refuse_fused(strategy)
    _product(x, weight, h)
    # The scan adds the bias, as in the product that would be one more pass over memory.
    return scan_forward(h, u, h0, h, bias=bias, **options)


def projected_backward(
    grad_next,  # [B, T, M] or [total, M], grad_a of the layer above
    weight_next,  # [M, N], its weight
    grad_h_n,  # [B, N] or None
    h,  # [B, T, N] or [total, N]
    u,  # [N]
    h0,  # [B, N] or None
    *,
    strategy="auto",  # or "split", which is the same on a CPU
    **options,  # of `scan_backward`
):
    """`scan_backward` with grad_h = grad_next @ weight_next, in whose memory grad_a is returned."""
    _refuse_fused(strategy)
    grad_a = torch.empty_like(h)
    _product(grad_next, weight_next.t(), grad_a)
    return scan_backward(grad_a, grad_h_n, h, u, h0, grad_a=grad_a, **options)


def _refuse_fused(strategy):
    if strategy == "fused":
        raise ValueError("strategy 'fused': there is no fused kernel on a CPU, only 'split'")


def _product(x, weight, out):
    """Writes x @ weight.t() to `out`, which is contiguous, or time-first and otherwise dense."""
    if x.is_contiguous() and out.is_contiguous():
        torch.nn.functional.linear(x, weight, out=out)  # faster than the views below
    else:
        torch.mm(flatten_like(x, out), weight.t(), out=flat_view(out))


def _to(tensor, dtype):
    """As `tensor.to(dtype)`, which costs half a microsecond also where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _batch_size(h, cu_seqlens):
    return h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
